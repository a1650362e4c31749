"""Controls that need retraining: other initialisations, shuffled answers, other sites, or an untrained model.

Each function makes one ingredient. Train with it as with the real one and compare, for example:

    seeds = train_seeds(bridge, reft, examples, config, seeds=(1, 2))
    agreement(bridge, seeds, held_out, null=null_edits(bridge, reft, examples, config))

An edit trained on noise still has directions, and a site without information can still be edited to
give an answer. Only the difference between the real edit and these controls is evidence.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import torch
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import layer_of, load_bridge
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.edit.untrained import untrained
from reftlens.training.seeds import trained_copies
from reftlens.training.train import TrainConfig


def permuted_labels(examples: Sequence[tuple[str, str]], *, seed: int) -> list[tuple[str, str]]:
    """Shuffles completions over prompts, so that no prompt has its correct completion.

    Each answer occurs as often as before. (With a plain random shuffle of two answers, half would
    stay correct.)

    Args:
        examples: (prompt, completion) pairs.
        seed: seed of the shuffle.

    Raises:
        ValueError: If more than half of the examples have the same answer, so that some prompt must
            keep it.
    """
    own = [completion for _, completion in examples]
    answer, most = max(Counter(own).items(), key=lambda item: item[1], default=("", 0))
    if 2 * most > len(own):
        raise ValueError(
            f"{most} of {len(own)} examples have the answer {answer!r}, so every shuffle leaves some of them correct. Remove "
            "examples until no answer belongs to more than half of them"
        )
    draw = random.Random(seed)
    dealt = draw.sample(own, len(own))
    for place in draw.sample(range(len(own)), len(own)):
        if dealt[place] == own[place]:
            # The answer is own or dealt at fewer than all places, since it is at most half of them:
            # one can swap.
            free = [other for other in range(len(own)) if own[place] not in (own[other], dealt[other])]
            other = draw.choice(free)
            dealt[place], dealt[other] = dealt[other], dealt[place]
    return [(prompt, completion) for (prompt, _), completion in zip(examples, dealt, strict=True)]


def null_edits(
    bridge: TransformerBridge,
    reft: Reft,
    examples: Sequence[tuple[str, str]],
    config: TrainConfig = TrainConfig(),
    *,
    n: int = 6,
    seed: int = 1000,
) -> list[Reft]:
    """Trains edits of the same layout that share only site, model and prompts: the null of `agreement`.

    Each has its own initialisation and its own shuffle of the answers. n null edits and a pair of
    real edits make (n + 2)(n + 1) / 2 pairs, so six null edits give at best p = 1/28.

    Args:
        bridge: the frozen base.
        reft: gives sites, classes and ranks; not changed.
        examples: the (prompt, completion) pairs that the real edits were trained on.
        config: training settings, the same as for the real edits.
        n: number of null edits.
        seed: seed of the first null edit's initialisation, order and shuffle; the others use the
            next integers. It must not be the seed of a real edit, which would then have the same
            initialisation.

    Raises:
        ValueError: If n is below 1, or the seed of `config` is among those of the null edits.
    """
    seeds = range(seed, seed + n)
    if n < 1 or config.seed in seeds:
        raise ValueError(
            f"n must be at least 1, and the null edits' seeds must not include {config.seed}, the seed of the real edit: "
            f"got n={n}, seed={seed}"
        )
    return trained_copies(bridge, [(reft, permuted_labels(examples, seed=number), number) for number in seeds], config)


def at_random_sites(bridge: TransformerBridge, reft: Reft, *, seed: int) -> Reft:
    """Makes an untrained copy of an edit in random blocks among those it does not act in.

    Args:
        bridge: gives the number of blocks.
        reft: the edit; not changed.
        seed: seed of the blocks and the initialisation.

    Raises:
        ValueError: If a site is not in a block, or there are not enough other blocks.
    """
    layers = [layer_of(site.hook_name) for site in reft.sites]
    taken = list(dict.fromkeys(layers))
    free = [layer for layer in range(bridge.cfg.n_layers) if layer not in taken]
    if None in taken or len(free) < len(taken):
        raise ValueError(
            f"an edit in blocks {taken} needs {len(taken)} other blocks as a control, but the model has only {len(free)}"
        )
    # Sorted, so that sites keep their order from early to late.
    drawn = dict(zip(taken, sorted(random.Random(seed).sample(free, len(taken))), strict=True))
    moved = [
        replace_layer(site, drawn[layer]) for site, layer in zip(reft.sites, layers, strict=True) if layer is not None
    ]
    fresh = untrained(reft, seed=seed)
    pairs = [(site, intervention) for site, (_, intervention) in zip(moved, fresh, strict=True)]
    return Reft(pairs, names=reft.names, scales=reft.scales)


def replace_layer(site: Site, layer: int) -> Site:
    """Returns the site with the same point and positions in another block."""
    _, _, rest = site.hook_name.split(".", 2)
    return Site(f"blocks.{layer}.{rest}", site.positions, site.head)


def random_model(bridge: TransformerBridge, *, seed: int) -> TransformerBridge:
    """Makes an untrained model of the same architecture, size and tokenizer, initialised as in its library.

    (`random_init_bridge` of TransformerLens does this for a name on the hub; this function does it
    for a loaded model.)

    Args:
        bridge: the model to copy; not changed.
        seed: seed of the initialisation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf_model = type(bridge.original_model)(bridge.original_model.config)
    return load_bridge(
        hf_model=hf_model.eval(),
        tokenizer=bridge.tokenizer,
        device=bridge.cfg.device,
        prepend_bos=bool(bridge.cfg.default_prepend_bos),
    )

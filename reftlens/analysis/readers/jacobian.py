"""Jacobian lens: what does the vector do by the average linear path to the last layer?

Let J be the Jacobian of the last block's output with respect to this block's, averaged over tokens
and prompts, with the effects on later tokens summed (Gurnee et al. 2026, fitted by
TransformerLens). A write direction u of size s is read as the slope of logits(f + t s J u) at t =
0, with real last residuals f. For real tokens, the reading is the slope of logits(J h + t J delta).
The slope, because J is one: a long step would saturate the final norm.

Controls: random vectors of the same length through the same lens, which give p; and the same vector
through the lenses of other layers, which should not agree if what is read depends on the layer.

Not evidence of an effect on a given prompt: J is an average, and it is linear. What needs two
features at once, a large step or one prompt's attention is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.analysis.readers.correction import Scored
from reftlens.analysis.readers.tokens import likeliest, require_residual, scored_tokens
from reftlens.analysis.readers.vectors import Case, Kind, Look
from reftlens.bridge import Lens, fit_lens, lens_layer, load_lens, mean_logit_slopes, mean_logits
from reftlens.data import str_tokens

KINDS: tuple[Kind, ...] = ("write", "change")
FITTED_ON = 12
"""Prompts on which the lens is fitted."""


def jacobian(case: Case, looks: Sequence[Look]) -> list[Scored]:
    """Reads vectors through the averaged Jacobian.

    Args:
        case: the edit, with the option "lens".
        looks: its write directions and changes.

    Raises:
        ValueError: If a site is not the output of a block, or the lens does not fit.
    """
    require_residual(case, "jacobian")
    layers = [lens_layer(case.bridge, operator.hook_name) for operator in case.operators]
    lens = lens_of(case, layers)
    return [_read(case, look, lens, layers[look.place]) for look in looks if look.kind in KINDS]


def lens_of(case: Case, layers: Sequence[int]) -> Lens:
    """Returns the lens that was given, as it is or as a file; or fits one for all layers on the first prompts.

    Args:
        case: the edit, with the option "lens".
        layers: those to be read.

    Raises:
        ValueError: If there is no lens, and no text to fit it on.
    """
    given = case.options.get("lens")
    if isinstance(given, Lens):
        return given
    if isinstance(given, str | Path):
        return load_lens(case.bridge, given)
    texts = [text for batch in case.batches for text in batch.texts or ()][:FITTED_ON]
    if not texts:
        raise ValueError(
            "a Jacobian lens is fitted on texts, and these batches have none: pass lens=, or prompts as texts"
        )
    # The lenses of other layers are a control.
    return fit_lens(case.bridge, texts, range(case.bridge.cfg.n_layers - 1) if layers else ())


def _read(case: Case, look: Look, lens: Lens, layer: int) -> Scored:
    def score(vectors: Float[Tensor, "set token d_model"], at: int = layer) -> Float[Tensor, "set d_vocab"]:
        pushes = lens.through(at, vectors)
        if look.states is None:
            return mean_logit_slopes(case.bridge, case.final, pushes[:, 0])
        return mean_logit_slopes(case.bridge, lens.through(at, look.states).to(case.final), pushes)

    found = scored_tokens(case, "jacobian", look, score)
    others = [other for other in lens.jacobians if other != layer]
    if others:
        own = score(look.vectors[:1])[0]
        # The other lenses are asked about this token alone, not about a furthest one of their own.
        token = int(own.abs().argmax())
        # The first name may be another: with one name only, it is the furthest.
        (label,) = str_tokens(case.bridge, torch.tensor([token]))
        elsewhere = torch.stack([score(look.vectors[:1], other)[0, token] for other in others])
        found = replace(
            found,
            controls=(
                (f"{label!r} through the lenses of other layers, mean", float(elsewhere.mean())),
                (
                    "fraction of other layers where it is as far",
                    float((elsewhere.abs() >= own[token].abs()).double().mean()),
                ),
            ),
        )
    if look.states is None:
        return found
    states = {"without the edit": look.states, "with the edit": look.states + look.vectors[0]}
    read = [(name, likeliest(case, mean_logits(case.bridge, lens.through(layer, h)))) for name, h in states.items()]
    return replace(found, states=tuple(read))

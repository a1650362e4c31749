"""Does a subspace carry the answer? Patches a source run's coordinates into a base run, inside the subspace and outside it.

h' = h_base + (h_source - h_base) B B^T at one token of each prompt, in the unedited model, on pairs
of prompts with different answers. The controls are the complement of the subspace, random subspaces
of the same rank, and placebos: random subspaces with a change of the same norm
(`tools.analysis.interchange` of TransformerLens runs all of them).

An interchange can be an illusion (Makelov et al. 2023, arXiv:2311.17030). An illusory subspace
takes its coordinate from a difference that later layers do not read, and turns it into a change
along a direction that is read but does not vary in natural runs. Both parts are measured
separately:

- causally disconnected: h_source - h_base = read + unread, each patched along B. The read part is
  weighted by the units that the two answers depend on (`engine.pathways`), so weak reading by other
  tokens has little weight.
- dormant: the part of the patch's effect that passes through neurons and heads which do not affect
  the answer when the whole activation is the source's.

A subspace is illusory if most of its effect is both. The verdict "not illusory" requires that the
test could find an illusion. So the same quantities are measured for a direction constructed to be
illusory at this point. If that direction is not detected (nothing unread varies, its effect takes
the natural path, or there is no unit after the point), the verdict is "no power".

Success is not evidence by itself: a subspace fitted to these pairs (`fit_das`) can succeed on
arbitrary labels and on random models. Fit it there as well (`arbitrary_targets`,
`analysis.random_model`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.pathways import Pathways, dormant_share, reference_illusion, weight_of
from reftlens.bridge import canonical_hook, each, hooked, side_for_ends
from reftlens.cone.hold import Held, hold_for_one_run, hold_from, run_cone
from reftlens.cone.recording import repeated
from reftlens.cone.shared import sharing
from reftlens.cone.variants import side_by_side, variants_at_once
from reftlens.data import Batch, Given, as_batch, str_tokens
from reftlens.numbers import seeds_of_draws
from reftlens.positions import Last, Positions
from reftlens.results import Interchanged, Swap

_Move = Callable[[Tensor, Tensor], Tensor]
"""(base activations, source activations) -> new base activations."""


@sharing
def interchange(
    bridge: TransformerBridge,
    hook_name: str,
    subspace: Float[Tensor, "rank d_model"],
    base: Given,
    source: Given,
    *,
    at: Positions = Last(1),
    n_random: int = 20,
    n_placebo: int = 20,
    batch_size: int = 64,
    seed: int = 0,
) -> Interchanged:
    """Runs interchanges inside a subspace, with their controls.

    Args:
        bridge: the model, unedited.
        hook_name: a point with activations `[batch, pos, d_model]`.
        subspace: rows that span it, such as `directions(operator, 2)`.
        base: texts, conversations or one batch; these prompts are run.
        source: prompts that give the coordinates, one for each of `base`.
        at: a rule that selects one token of each prompt, which is interchanged.
        n_random: random subspaces of the same rank.
        n_placebo: random subspaces with a change of the same norm as the given one.
        batch_size: prompts in one forward pass.
        seed: seed of the random subspaces.

    Raises:
        ValueError: If the batches have different lengths, the rule does not select exactly one
            token of each prompt, or both prompts of every pair have the same answer.
    """
    from transformer_lens.tools.analysis.interchange import NormMatchedPlacebo, SubspaceInterchange, random_basis

    side = side_for_ends(bridge)
    base = as_batch(bridge, base, name="base", padding_side=side)
    source = as_batch(bridge, source, name="source", padding_side=side)
    if len(base) != len(source):
        raise ValueError(f"interchange needs one source for each base, got {len(base)} bases and {len(source)} sources")
    canonical_hook(bridge, hook_name)  # raises for an unknown point
    runner = _Runner(bridge, hook_name, base, source, at, batch_size)
    # Columns: TransformerLens's SubspaceInterchange takes a basis [d_model, rank].
    B = torch.linalg.qr(subspace.detach().double().cpu().T).Q.float()
    P, dormant, power = _ways(runner, B, seed)
    inside = SubspaceInterchange(B)

    def along(part: Callable[[Tensor], Tensor]) -> _Move:
        return lambda h, s: h + part(s - h) @ B.to(h) @ B.T.to(h)

    d_model, rank = B.shape
    bases = [random_basis(d_model, rank, one) for one in seeds_of_draws(seed, n_random + n_placebo)]
    whole, within, complement, from_read, from_unread, *others = runner.swaps(
        [
            ("the whole activation", lambda h, s: s),
            ("inside", inside),
            # s - (s - h) B B^T: all of the source except inside B.
            ("its complement", lambda h, s: s - (inside(h, s) - h)),
            ("inside, by what is read", along(lambda gap: gap @ P.to(gap))),
            ("inside, by what is not read", along(lambda gap: gap - gap @ P.to(gap))),
            *(("random subspace", SubspaceInterchange(basis)) for basis in bases[:n_random]),
            *(("norm-matched placebo", NormMatchedPlacebo(inside, basis)) for basis in bases[n_random:]),
        ]
    )
    return Interchanged(
        hook_name=hook_name,
        rank=rank,
        n=int(runner.differ.sum()),
        n_given=len(base),
        whole=whole,
        inside=within,
        complement=complement,
        from_read=from_read,
        from_unread=from_unread,
        random=tuple(others[:n_random]),
        placebo=tuple(others[n_random:]),
        dormant=dormant,
        power=power,
        pairs=tuple(zip(*(_tokens(bridge, batch, runner.differ) for batch in (base, source)), strict=True)),
    )


def _tokens(bridge: TransformerBridge, batch: Batch, rows: Bool[Tensor, " pair"]) -> list[tuple[str, ...]]:
    """Returns the tokens of these prompts."""
    chosen = zip(batch.tokens[rows], batch.prompt_mask[rows], strict=True)
    return [str_tokens(bridge, tokens[there]) for tokens, there in chosen]


def _ways(runner: _Runner, B: Float[Tensor, "width rank"], seed: int) -> tuple[Tensor, float, float]:
    """Returns a soft projector on what is read, the dormant share of the change inside B, and that of a constructed illusion."""
    rows = runner.differ.nonzero().flatten()
    ways = Pathways(
        runner.bridge,
        runner.hook_name,
        runner.base,
        runner.places,
        runner.pair,
        rows=rows,
        batch_size=runner.batch_size,
        seed=seed,
    )
    h, gap = runner.bases.double(), (runner.sources - runner.bases).double()
    start, whole, inside = ways.under(h, h + gap, h + gap @ B.double() @ B.double().T)
    natural = start.parts(whole)
    # What is read may differ in the two runs, and a patch goes from one to the other.
    read = (start.read + whole.read) / 2
    fake = reference_illusion(gap[rows], (start.own + whole.own) / 2, read)
    (made,) = ways.under(h + (gap @ fake)[:, None] * fake)
    return (
        weight_of(read).to(B),
        dormant_share(natural, start.parts(inside)),
        dormant_share(natural, start.parts(made)),
    )


class _Runner:
    """Runs pairs through the bridge: base, source, and under an interchange."""

    def __init__(
        self, bridge: TransformerBridge, hook_name: str, base: Batch, source: Batch, at: Positions, batch_size: int
    ) -> None:
        self.bridge, self.hook_name, self.base, self.batch_size = bridge, hook_name, base, batch_size
        self.places = _one_token(base, at)
        # The swapped token, and the last one, whose logits are read.
        self.needed = at.mask(base.prompts) | base.last_prompt_mask
        self.rows = torch.arange(len(base)).split(batch_size)
        ends = _one_token(source, at)
        found = each(bridge, lambda rows: self._pairs(source, ends, rows), self.rows)
        self.bases, self.sources, self.pair, start, end = (torch.cat(parts) for parts in zip(*found, strict=True))
        self.differ: Bool[Tensor, " pair"] = self.pair[:, 0] != self.pair[:, 1]
        if not bool(self.differ.any()):
            raise ValueError(
                "every source has the same answer as its base, so an interchange cannot change the answer: pair prompts with "
                "different answers"
            )
        self.start, self.end = self._difference(start), self._difference(end)

    def _pairs(self, source: Batch, ends: Int[Tensor, " pair"], rows: Int[Tensor, " n"]) -> tuple[Tensor, ...]:
        """Returns the activations of some pairs, their answers (source's, then base's), and both runs' logits of these."""
        base_h, said = self._run(self.base, self.places, rows)
        source_h, wanted = self._run(source, ends, rows)
        pair = torch.stack([wanted.argmax(-1), said.argmax(-1)], dim=1)
        return base_h, source_h, pair, said.gather(1, pair), wanted.gather(1, pair)

    def swaps(self, moves: Sequence[tuple[str, _Move]]) -> list[Swap]:
        """Returns what each move does, in the order given."""
        moved_to = [move(self.bases, self.sources) for _, move in moves]
        found = [self._moved(moved_to, rows) for rows in self.rows]
        tops, pairs = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        return [self._swap(name, top, pair) for (name, _), top, pair in zip(moves, tops, pairs, strict=True)]

    def _moved(
        self, moved_to: Sequence[Tensor], rows: Int[Tensor, " n"]
    ) -> tuple[Int[Tensor, "move n"], Float[Tensor, "move n 2"]]:
        """Returns the most likely token of some pairs after each move, and the logits of their two answers."""
        held = hold_from(self.bridge, repeated(self.base, rows), [self.hook_name], self.needed[rows])

        def run(some: Int[Tensor, " move"]) -> tuple[Int[Tensor, "move n"], Float[Tensor, "move n 2"]]:
            values = torch.cat([moved_to[place][rows] for place in some])
            logits = self._written(side_by_side(held, len(some)), self.places[rows].repeat(len(some)), values)
            pairs = self.pair[rows].repeat(len(some), 1).to(logits.device)
            shape = (len(some), len(rows))
            return logits.argmax(-1).cpu().unflatten(0, shape), logits.gather(1, pairs).cpu().unflatten(0, shape)

        found = each(self.bridge, run, torch.arange(len(moved_to)).split(variants_at_once(self.bridge, held)))
        tops, pairs = (torch.cat(parts) for parts in zip(*found, strict=True))
        return tops, pairs

    def _swap(self, name: str, top: Int[Tensor, " pair"], pair: Float[Tensor, "pair 2"]) -> Swap:
        flips = (top == self.pair[:, 0])[self.differ].float().mean()
        # By the mean gap, because that of a single pair may be near 0.
        moved = (self._difference(pair) - self.start) / (self.end - self.start).mean()
        return Swap(name, float(flips), float(moved.mean()), tuple(moved.tolist()))

    def _difference(self, pair: Float[Tensor, "pair 2"]) -> Float[Tensor, " differing"]:
        """Returns logit(source's answer) - logit(base's answer) where they differ."""
        return (pair[:, 0] - pair[:, 1])[self.differ]

    @torch.no_grad()
    def _run(self, batch: Batch, places: Int[Tensor, " pair"], rows: Int[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        """Returns the activation at the selected token of some prompts, and the logits after them."""
        some = repeated(batch, rows)
        seen: list[Tensor] = []
        read = torch.zeros_like(some.prompt_mask)
        read[torch.arange(len(rows)), places[rows]] = True
        held = hold_for_one_run(self.bridge, some, [self.hook_name], read | some.last_prompt_mask)

        def keep(activation: Tensor, hook: Any) -> None:
            seen.append(activation[torch.arange(len(rows)), places[rows] - held.start].flatten(1).float().cpu())

        with hooked(self.bridge, [(self.hook_name, keep)]):
            said = run_cone(self.bridge, held, [], logits_at=some.last_prompt_mask)
        return seen[-1], said.float().cpu()

    @torch.no_grad()
    def _written(self, held: Held, places: Int[Tensor, " n"], values: Float[Tensor, "n width"]) -> Tensor:
        """Returns the logits after each prompt, with these activations at its selected token."""

        def write(activation: Tensor, hook: Any) -> Tensor:
            there = values.to(activation).reshape(len(values), *activation.shape[2:])
            return activation.index_put((torch.arange(len(values)), places - held.start), there)

        with hooked(self.bridge, [(self.hook_name, write)]):
            return run_cone(self.bridge, held, [], logits_at=held.batch.last_prompt_mask).float()


def _one_token(batch: Batch, at: Positions) -> Int[Tensor, " batch"]:
    mask = at.mask(batch.prompts)
    counts: Sequence[int] = mask.sum(dim=1).tolist()
    for row, count in enumerate(counts):
        if count != 1:
            raise ValueError(f"an interchange needs one token in each prompt, but {at!r} selects {count} in row {row}")
    return mask.int().argmax(dim=1)

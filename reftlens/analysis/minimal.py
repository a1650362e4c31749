"""What is the smallest edit that does as much? Leaves out sites, tokens, directions and coordinates while the effect holds.

An edit is small enough if it keeps a share of the effect (the log-probability of the wanted
answers, beyond the base's) and its mean KL elsewhere stays within a budget. Sites are left out in
the order of their Shapley values, smallest first. Tokens are added one by one, the best first,
until they do. Directions are the strongest of the decomposition. Coordinates of the write
directions are left out last, smallest first. Where a smaller edit fails, it may be trained again,
and is kept if it then holds.

The search is greedy: a smaller edit than the one found may exist. Another seed may find other sites
(see `agreement`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.ablate import ablate
from reftlens.analysis.decompose import decompose
from reftlens.analysis.metrics import token_difference
from reftlens.bridge import side_for_ends
from reftlens.cone.answers import Answers
from reftlens.cone.shared import sharing
from reftlens.data import Batch, Prompt, as_batches, as_prompts, first_tokens
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.edit.untrained import untrained
from reftlens.interventions import DiReFT
from reftlens.numbers import require_number
from reftlens.positions import At, Positions
from reftlens.results import Minimal
from reftlens.results.known import Smaller
from reftlens.training.train import TrainConfig, train

Examples = Sequence[tuple[str, str]]


@sharing
def minimal(
    bridge: TransformerBridge,
    reft: Reft,
    examples: Examples,
    kept: Iterable[Prompt],
    *,
    share: float = 0.9,
    kl: float | None = None,
    retrain: TrainConfig | None = None,
    seeds: Sequence[int] = (),
    batch_size: int = 64,
) -> tuple[Reft, Minimal]:
    """Searches for the smallest edit that keeps the effect.

    Args:
        bridge: the base.
        reft: the edit; not changed.
        examples: (prompt, wanted completion) pairs; the completion's first token is scored.
        kept: prompts whose answers should not change.
        share: of the effect that has to be kept.
        kl: largest mean KL(base, edited) on `kept`, in nats. By default that of the edit itself,
            and a tenth more.
        retrain: training settings, to train a smaller edit that fails once more. Without them, none
            is trained.
        seeds: seeds with which an edit of the smallest shape is trained from the start, if
            `retrain` is given; each is that of the initialisation and of the order of examples.
        batch_size: prompts in one forward pass.

    Returns:
        The smallest edit, an ordinary `Reft`, and the path to it.

    Raises:
        NotAffineError: If an edit is not of the form A h + c.
        ValueError: If there are no examples, `share` is outside (0, 1], or the edit does not raise
            the wanted answers.
    """
    require_number("share", share, above=0)
    if share > 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    judge = _Judge.of(bridge, examples, as_prompts(kept, "kept"), batch_size)
    start = judge("all", reft)
    if start.effect <= 0:
        raise ValueError(
            f"minimal keeps a share of the effect, but this edit changes the log-probability of the wanted answers by "
            f"{start.effect:.3g}: pass examples that it was trained for"
        )
    budget = 1.1 * start.kl if kl is None else kl
    search = _Search(bridge, examples, judge, share * start.effect, budget, retrain)
    path, small = [start], reft
    for stage, candidates in (("sites", _sites), ("tokens", _tokens), ("rank", _ranks), ("coordinates", _coordinates)):
        small = candidates(search, small)
        path.append(judge(stage, small))
    again = (
        tuple(judge(f"seed {seed}", search.trained(untrained(small, seed=seed), seed)) for seed in seeds)
        if retrain
        else ()
    )
    return small, Minimal(tuple(path), again, share=share, kl=budget, n_examples=len(examples), n_kept=judge.n_kept)


@final
@dataclass(frozen=True, eq=False)
class _Judge:
    """Measures the effect and the side effect of an edit."""

    bridge: TransformerBridge
    wanted: Sequence[tuple[Batch, Tensor]]
    kept: Sequence[Batch]

    @classmethod
    def of(cls, bridge: TransformerBridge, examples: Examples, kept: Sequence[Prompt], batch_size: int) -> _Judge:
        if not examples:
            raise ValueError("minimal needs at least one (prompt, completion) pair, got none")
        prompts, completions = zip(*examples, strict=True)
        answers = first_tokens(bridge, prompts, completions, name="completions").split(batch_size)
        side = side_for_ends(bridge)
        batches = as_batches(bridge, prompts, batch_size=batch_size, padding_side=side)
        return cls(
            bridge,
            list(zip(batches, answers, strict=True)),
            as_batches(bridge, kept, name="kept", batch_size=batch_size, padding_side=side),
        )

    @property
    def n_kept(self) -> int:
        return sum(map(len, self.kept))

    @torch.no_grad()
    def __call__(self, stage: str, reft: Reft) -> Smaller:
        effect = kl = 0.0
        for batch, answer in self.wanted:
            base, edited = self._said(batch, reft)
            rows = torch.arange(len(batch))
            effect += float((edited - base)[rows, answer.cpu()].sum())
        for batch in self.kept:
            base, edited = self._said(batch, reft)
            kl += float((base.exp() * (base - edited)).sum())
        batch = self.wanted[0][0]
        tokens = sum(int(edit.mask.sum()) for edit in reft.edits(batch)) / (len(batch) * len(reft))
        return Smaller(
            stage=stage,
            sites=len(reft),
            tokens=tokens,
            rank=max(intervention.rank for _, intervention in reft),
            numbers=sum(int((p != 0).sum()) for p in reft.parameters()),
            effect=effect / sum(len(batch) for batch, _ in self.wanted),
            kl=kl / self.n_kept,
        )

    def _said(self, batch: Batch, reft: Reft) -> tuple[Tensor, Tensor]:
        edits = reft.edits(batch)
        run = Answers(self.bridge, batch, edits)
        return run.logprobs(), run.logprobs(edits)


@final
@dataclass(frozen=True, eq=False)
class _Search:
    bridge: TransformerBridge
    examples: Examples
    judge: _Judge
    effect: float
    kl: float
    retrain: TrainConfig | None

    def holds(self, reft: Reft) -> bool:
        found = self.judge("", reft)
        return found.effect >= self.effect and found.kl <= self.kl

    def kept(self, candidate: Reft) -> Reft | None:
        """Returns the candidate if it holds, as it is or trained again."""
        if self.holds(candidate):
            return candidate
        if self.retrain is None:
            return None
        # A copy, because a candidate shares interventions with the edit that it was made from.
        again = self.trained(deepcopy(candidate))
        return again if self.holds(again) else None

    def trained(self, reft: Reft, seed: int | None = None) -> Reft:
        assert self.retrain is not None
        # A seed of its own also for the order of examples: some edits always start at the same
        # values.
        seed = self.retrain.seed if seed is None else seed
        train(self.bridge, reft, self.examples, replace(self.retrain, progress=False, seed=seed))
        return reft


def _sites(search: _Search, reft: Reft) -> Reft:
    """Leaves out the site with the smallest Shapley value, as often as the rest holds."""
    while len(reft) > 1:
        # Anew for each smaller edit: what a site adds depends on which others are left.
        order = _shapley(search, reft).argsort().tolist()
        smaller = next((kept for place in order[:2] if (kept := search.kept(_without(reft, place))) is not None), None)
        if smaller is None:
            break
        reft = smaller
    return reft


def _shapley(search: _Search, reft: Reft) -> Tensor:
    """Values of the wanted answer against the base's answer, on the prompts of one batch."""
    batch, answer = search.judge.wanted[0]
    with torch.no_grad():
        said = Answers(search.bridge, batch, reft.edits(batch)).logprobs()
    # Without the wanted answer, which cannot be compared with itself.
    foil = said.scatter(1, answer.cpu()[:, None], -torch.inf).argmax(-1)
    metric = token_difference(answer.cpu(), foil)
    return ablate(search.bridge, reft, batch, metric, n_orders=20, n_control=1, progress=False).shapley


def _without(reft: Reft, place: int) -> Reft:
    return _made(reft, [pair for index, pair in enumerate(reft) if index != place], place)


def _made(reft: Reft, pairs: list[tuple[Site, object]], left_out: int | None = None) -> Reft:
    names = [name for index, name in enumerate(reft.names) if index != left_out]
    scales = {name: scale for name, scale in reft.scales.items() if name in names}
    return Reft(pairs, names=names, scales=scales)  # type: ignore[arg-type]


def _tokens(search: _Search, reft: Reft) -> Reft:
    """For each site, begins with the one token that keeps most, and adds the next best until the edit holds."""
    for place in range(len(reft)):
        chosen: list[Positions] = []
        candidates = _single_tokens(search, reft[place][0].positions)
        while candidates:
            # Of equally good ones the first, which is counted from the end.
            best = max(candidates, key=lambda rule: search.judge("", _at(reft, place, [*chosen, rule])).effect)
            chosen, candidates = [*chosen, best], [rule for rule in candidates if rule is not best]
            if not candidates:
                break
            smaller = search.kept(_at(reft, place, chosen))
            if smaller is not None:
                reft = smaller
                break
    return reft


def _single_tokens(search: _Search, rule: Positions) -> list[Positions]:
    """Returns single tokens that the rule selects in every prompt, counted from the end and from the beginning."""
    batches = [batch for batch, _ in search.judge.wanted] + list(search.judge.kept)
    shortest = min(int(batch.prompt_mask.sum(1).min()) for batch in batches)
    found: list[Positions] = []
    for index in (*range(-1, -shortest - 1, -1), *range(shortest)):
        at = At(index)
        if all(bool((rule.mask(batch.prompts) | ~at.mask(batch.prompts)).all()) for batch in batches):
            found.append(at)
    return found if len(found) > 1 else []


def _at(reft: Reft, place: int, rules: Sequence[Positions]) -> Reft:
    joined = rules[0]
    for rule in rules[1:]:
        joined = joined | rule
    pairs = [
        (Site(site.hook_name, joined, site.head), intervention) if index == place else (site, intervention)
        for index, (site, intervention) in enumerate(reft)
    ]
    return _made(reft, list(pairs))


def _ranks(search: _Search, reft: Reft) -> Reft:
    """For each site, takes as few of the strongest directions as hold."""
    for place in range(len(reft)):
        for candidate in _truncated(search, reft, place):
            smaller = search.kept(candidate)
            if smaller is not None:
                reft = smaller
                break
    return reft


def _truncated(search: _Search, reft: Reft, place: int) -> Iterator[Reft]:
    """Yields the edit with 1, 2, ... directions at one site, as a DiReFT; not with as many as it may use now."""
    operator = decompose(search.bridge, reft, [batch for batch, _ in search.judge.wanted])[place]
    site, intervention = reft[place]
    for rank in range(1, min(intervention.rank, len(operator.write) + 1)):
        edit = DiReFT(intervention.d_model, rank).to(search.bridge.cfg.device)
        scale = reft.scales.get(reft.names[place], 1.0)
        with torch.no_grad():
            edit.write.copy_(operator.write[:rank])
            # The operator includes the scale, which the new edit keeps and would apply twice.
            edit.read.weight.copy_(operator.read[:rank] / scale)
            edit.read.bias.copy_(operator.constant[:rank] / scale)
        pairs = [(site, edit) if index == place else pair for index, pair in enumerate(reft)]
        yield _made(reft, list(pairs))


def _coordinates(search: _Search, reft: Reft) -> Reft:
    """For each DiReFT, sets as many of the smallest coordinates of its write directions to zero as the edit holds without."""
    for place, (site, intervention) in enumerate(reft):
        if not isinstance(intervention, DiReFT):
            continue
        # Axes of write: direction, coordinate.
        size = intervention.write.detach().norm(dim=0)
        low, high = 0, len(size) - 1  # Largest number known to hold, and to consider.
        best = reft
        # Bisection is possible because the number alone says which coordinates go.
        while low < high:
            left_out = (low + high + 1) // 2
            edit = deepcopy(intervention)
            with torch.no_grad():
                edit.write[:, size.argsort()[:left_out]] = 0.0
            pairs = [(site, edit) if index == place else pair for index, pair in enumerate(reft)]
            candidate = _made(reft, list(pairs))
            # Not trained again, which would fill the zeros.
            if search.holds(candidate):
                low, best = left_out, candidate
            else:
                high = left_out - 1
        reft = best
    return reft

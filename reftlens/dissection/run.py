"""`dissect`: runs every analysis of one trained edit, in order, within the budgets."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, final

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens import analysis
from reftlens.analysis.engine.activations import edited_activations
from reftlens.bridge import side_for_ends
from reftlens.cone.answers import Answers
from reftlens.cone.shared import sharing
from reftlens.data import Batch, as_batches, encode, first_tokens
from reftlens.dissection.cost import N_CONTROL, READ_OUT, estimate_cost
from reftlens.dissection.result import DissectConfig, Dissection
from reftlens.edit.reft import Reft
from reftlens.interventions import NotAffineError
from reftlens.positions import Last
from reftlens.results import DirectionReadout, Interchanged, Operator, Overlap, ReadSpace
from reftlens.training.objectives import Completion
from reftlens.training.seeds import train_seeds

Examples = Sequence[tuple[str, str]]


@sharing
def dissect(
    bridge: TransformerBridge, reft: Reft, examples: Examples | Dataset, config: DissectConfig = DissectConfig()
) -> Dissection:
    """Runs every analysis on a trained edit.

    The edit should change the examples that the base does not answer as wanted, and leave the others unchanged. Both kinds
    are used, so pass both.

    Args:
        bridge: the base.
        reft: the trained edit.
        examples: (prompt, wanted completion) pairs, preferably held out rather than used in training; or a
            `datasets.Dataset` with these columns.
        config: the budgets. With `progress`, the cost is printed beforehand.

    Raises:
        ValueError: If there are fewer than three examples, or one cannot be encoded.
    """
    pairs = Completion().read(examples)
    if len(pairs) < 3:
        raise ValueError(f"a dissection needs three examples at least, got {len(pairs)}")
    if config.progress:
        tqdm.write(f"dissecting: {estimate_cost(bridge, reft, pairs, config)}")
    chosen = list(pairs)
    random.Random(config.seed).shuffle(chosen)
    work = _Work(bridge, reft, chosen[: config.max_examples], config)
    parts: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("outcomes", work.outcomes),
        ("directions", work.operators),
        ("ledger", work.ledger),
        ("readouts", work.readouts),
        ("overlaps", work.overlaps),
        ("dose", work.dose),
        ("interchange", work.interchanges),
        ("off-manifold", work.manifolds),
        ("seeds", lambda: work.agreements(pairs)),
    ]
    found: dict[str, Any] = {}
    with tqdm(total=len(parts), desc="dissecting", unit="part", disable=not config.progress) as bar:
        for name, part in parts:
            bar.set_postfix_str(name)
            with work.timed(name):
                found |= part()
            bar.update(1)
    return Dissection(
        model=str(bridge.cfg.model_name),
        edit=repr(reft),
        n_wanted=len(work.wanted),
        n_kept=len(work.kept),
        left_out=tuple(work.left_out),
        seconds=tuple(work.seconds),
        settings=(*((item.name, str(getattr(config, item.name))) for item in fields(config)), *work.notes),
        **found,
    )


@final
@dataclass
class _Work:
    """The state that the parts share: examples sorted into wanted and kept, their batches, and the results so far."""

    bridge: TransformerBridge
    reft: Reft
    examples: Examples
    config: DissectConfig
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    seconds: list[tuple[str, float]] = field(default_factory=list)
    found: tuple[Operator, ...] = ()

    def __post_init__(self) -> None:
        prompts = [prompt for prompt, _ in self.examples]
        side = side_for_ends(self.bridge)
        self.batches = as_batches(self.bridge, prompts, batch_size=self.config.batch_size, padding_side=side)
        # With the edits, so that the shared base runs begin where the edits do.
        runs = (Answers(self.bridge, batch, self.reft.edits(batch)) for batch in self.batches)
        said = torch.cat([run.logprobs().argmax(-1) for run in runs])
        right = (said == first_tokens(self.bridge, *zip(*self.examples, strict=True)).cpu()).tolist()
        self.wanted = [pair for pair, known in zip(self.examples, right, strict=True) if not known]
        self.kept = [pair for pair, known in zip(self.examples, right, strict=True) if known]

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds.append((name, time.perf_counter() - start))

    def rank(self, operator: Operator) -> int:
        """Counts the directions that an edit actually uses."""
        return max(1, min(round(operator.effective_rank), len(operator.write)))

    def outcomes(self) -> dict[str, Any]:
        groups = (
            ("the base answers otherwise", "new answer", self.wanted),
            ("the base agrees", "old answer", self.kept),
        )
        results = [
            analysis.outcome(
                self.bridge,
                self.reft,
                [prompt for prompt, _ in pairs],
                [answer for _, answer in pairs],
                group=group,
                wanted=wanted,
                batch_size=self.config.batch_size,
                seed=self.config.seed,
            )
            for group, wanted, pairs in groups
            if pairs
        ]
        return {"outcomes": tuple(results)}

    def operators(self) -> dict[str, Any]:
        fresh = analysis.untrained(self.reft, seed=self.config.seed)
        try:
            self.found = tuple(analysis.decompose(self.bridge, self.reft, self.batches, at=self.config.at))
        except (NotAffineError, ValueError) as error:
            self.left_out.append(("directions, and all that is read from them", str(error)))
            return {}
        try:
            control = tuple(analysis.decompose(self.bridge, fresh, self.batches, at=self.config.at))
        except ValueError as error:
            # An edit that is the identity at initialisation has nothing to decompose.
            self.left_out.append(("the untrained edit's directions", str(error)))
            control = ()
        return {"operators": self.found, "untrained": control}

    def ledger(self) -> dict[str, Any]:
        prompt = (self.wanted or self.kept)[0][0]
        found: dict[str, Any] = {"sizes": analysis.edit_size(self.bridge, self.reft, prompt)}
        try:
            found["ledger"] = analysis.ledger(self.bridge, self.reft, prompt)
        except NotAffineError as error:
            self.left_out.append(("ledger", str(error)))
        return found

    def readouts(self) -> dict[str, Any]:
        if not self.found:
            return {}
        config, pairs = self.config, self.wanted or self.kept
        batch = encode(self.bridge, [prompt for prompt, _ in pairs[:READ_OUT]])
        asked = {answer: prompt for prompt, answer in reversed(pairs)}
        answers = list(dict.fromkeys(answer for _, answer in pairs))
        tokens = first_tokens(self.bridge, [asked[answer] for answer in answers], answers).tolist()
        watch = [answer for place, answer in enumerate(answers) if tokens[place] not in tokens[:place]][:4]
        readable = []
        for operator in self.found:
            if operator.write.shape[1] != self.bridge.cfg.d_model:
                self.left_out.append((f"readout of {operator.where}", "it is not as wide as the residual stream"))
                continue
            readable.append(_strongest(operator, config.directions))
        readouts: list[DirectionReadout] = []
        try:
            readouts = analysis.read_directions(
                self.bridge, readable, batch, watch=watch, n_null=config.n_null, seed=config.seed
            )
        except ValueError as error:
            self.left_out.append(("readouts", str(error)))
        contexts = analysis.top_contexts(
            self.bridge,
            self.reft,
            self.found,
            self.batches,
            at=config.at,
            directions=config.directions,
            n_null=config.n_null,
            seed=config.seed,
        )
        return {"readouts": tuple(readouts), "contexts": tuple(contexts)}

    def overlaps(self) -> dict[str, Any]:
        """Compares write directions with the largest activation directions and with class differences."""
        from transformer_lens.tools.analysis.interchange import mean_difference_basis

        results: list[Overlap] = []
        for index, operator in enumerate(self.found):
            h, rows = self._one_for_each(index)
            written = analysis.directions(operator, self.rank(operator))
            centred = (h - h.mean(dim=0)).double()
            if float(centred.norm()) < 1e-5 * float(h.norm()):
                why = "the activations at the last edited token are alike in all prompts"
                self.left_out.append((f"overlaps at {operator.where}", why))
                continue
            _, _, principal = torch.linalg.svd(centred, full_matrices=False)
            others = {"largest directions of the activations": principal[: len(written)]}
            known = set(self.kept)
            labels = ["kept" if self.examples[row] in known else "wanted" for row in rows]
            if len(set(labels)) == 2:
                others["difference of wanted and kept prompts"] = mean_difference_basis(h, labels).T
            nulls = {"Haar": analysis.haar(h.shape[1]), "covariance-matched": analysis.covariance_matched(h)}
            results += [
                analysis.overlap(
                    written,
                    other,
                    nulls=nulls,
                    n_null=self.config.n_null,
                    names=(f"{operator.where}, {len(written)} write directions", name),
                    seed=self.config.seed,
                )
                for name, other in others.items()
            ]
        return {"overlaps": tuple(results)}

    def _one_for_each(self, index: int) -> tuple[Tensor, list[int]]:
        """Returns the base's activation at the last edited token of each prompt, and the index of its prompt."""
        states, rows = [], []
        for number, batch in enumerate(self.batches):
            edit, h = edited_activations(self.bridge, self.reft.scaled(0.0), batch)[index]
            row = edit.mask.nonzero()[:, 0].cpu()
            last = torch.cat([row[1:] != row[:-1], torch.ones(1, dtype=torch.bool)])
            states.append(h.float().cpu()[last])
            rows += (row[last] + number * self.config.batch_size).tolist()
        return torch.cat(states), rows

    def dose(self) -> dict[str, Any]:
        kept = [prompt for prompt, _ in self.kept] if self.wanted else []
        result = analysis.dose(
            self.bridge,
            self.reft,
            self.wanted or self.kept,
            kept=kept,
            n_control=N_CONTROL,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
        )
        return {"dose": result}

    def interchanges(self) -> dict[str, Any]:
        prompts = [prompt for prompt, _ in self.examples][: self.config.n_pairs]
        side = side_for_ends(self.bridge)
        base, source = (encode(self.bridge, texts, padding_side=side) for texts in (prompts, prompts[1:] + prompts[:1]))
        # The read space is found from one batch of them, which limits the memory of its graph.
        some = encode(self.bridge, prompts[: self.config.batch_size], padding_side=side)
        spaces: list[ReadSpace] = []
        results: list[Interchanged] = []
        for index, (operator, site) in enumerate(zip(self.found, self.reft.sites, strict=False)):
            what = f"interchange at {operator.where}"
            if site.head is not None or operator.write.shape[1] != self.bridge.cfg.d_model:
                self.left_out.append((what, "only whole activations as wide as the residual stream are interchanged"))
                continue
            if not bool((self.reft.edits(base)[index].mask & Last(1).mask(base.prompts)).any()):
                self.left_out.append((what, "it does not edit the last token of the prompt"))
                continue
            try:
                read = analysis.read_space(self.bridge, site.hook_name, some, seed=self.config.seed)
                results.append(replace(self._interchange(operator, base, source), site=operator.site))
                spaces.append(replace(read, site=operator.site))
            except ValueError as error:
                self.left_out.append((what, str(error)))
        return {"interchanges": tuple(results), "read_spaces": tuple(spaces)}

    def _interchange(self, operator: Operator, base: Batch, source: Batch) -> Interchanged:
        return analysis.interchange(
            self.bridge,
            operator.hook_name,
            analysis.directions(operator, self.rank(operator)),
            base,
            source,
            n_random=self.config.n_random,
            n_placebo=self.config.n_random,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
        )

    def manifolds(self) -> dict[str, Any]:
        batches = self.batches
        if len(batches) < 3:
            third = -(-len(self.examples) // 3)
            prompts = [prompt for prompt, _ in self.examples]
            batches = as_batches(self.bridge, prompts, batch_size=third, padding_side=side_for_ends(self.bridge))
        try:
            return {"manifolds": tuple(analysis.off_manifold(self.bridge, self.reft, batches, seed=self.config.seed))}
        except ValueError as error:
            self.left_out.append(("off-manifold", str(error)))
            return {}

    def agreements(self, examples: Examples) -> dict[str, Any]:
        config = self.config
        if config.retrain is None:
            self.left_out.append(
                ("seeds", "no training settings were given: pass DissectConfig(retrain=TrainConfig(...))")
            )
            return {}
        training = replace(config.retrain, progress=False)
        first = 1 + max(self.config.seed, training.seed, *config.seeds)
        shuffled = _no_majority(examples)
        if not shuffled:
            self.left_out.append(
                ("seeds", "all examples have one answer, so there are no shuffled ones to compare with")
            )
            return {}
        if len(shuffled) < len(examples):
            why = (
                f"{len(shuffled)} of {len(examples)} examples: of more, the commonest answer would stay right for some"
            )
            self.notes.append(("trained on shuffled answers", why))
        null = analysis.null_edits(self.bridge, self.reft, shuffled, training, n=config.n_null_edits, seed=first)
        copies = train_seeds(self.bridge, self.reft, examples, training, seeds=config.seeds)
        pairs = analysis.agreement(
            self.bridge,
            {"this edit": self.reft, **copies},
            self.batches,
            null=null,
            at=config.at,
            n_null=config.n_null,
            seed=config.seed,
        )
        return {"agreements": tuple(pairs)}


def _no_majority(examples: Examples) -> Examples:
    """Drops examples with the commonest answer until every answer can be assigned to an example with another answer."""
    answer, most = Counter(completion for _, completion in examples).most_common(1)[0]
    surplus = max(0, 2 * most - len(examples))
    having = [place for place, (_, completion) in enumerate(examples) if completion == answer]
    left = set(having[len(having) - surplus :])
    return [pair for place, pair in enumerate(examples) if place not in left]


def _strongest(operator: Operator, n: int) -> Operator:
    """Keeps only the first n directions of a result."""
    return replace(
        operator,
        write=operator.write[:n],
        read=operator.read[:n],
        constant=operator.constant[:n],
        spectrum=operator.spectrum[:n],
        constant_share=operator.constant_share[:n],
        pattern=operator.pattern[:n],
        input_spectrum=None,
    )

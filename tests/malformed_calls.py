"""Calls everything public with arguments of every wrong kind, and counts the errors that are not this package's own.

`python tests/malformed_calls.py` prints each raw error and the counts, and `python tests/malformed_calls.py 40` makes
every 40th call; `test_arguments.py` runs that, and more of them among the slow tests. One argument at a time is
replaced in a call that works. An error is raw unless a `raise` of reftlens made it, of a type that the documentation names.
"""

from __future__ import annotations

import dis
import inspect
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from conftest import make_bridge, make_hf
from made import every_result, made_log

import reftlens as rl
from reftlens import positions
from reftlens.data import encode

PACKAGE = str(Path(rl.__file__).parent)
POST = "blocks.1.hook_resid_post"
NAN, INF, HUGE = float("nan"), float("inf"), 2**70
PROMPTS = ["The tower stands in the city of", "The weaver stands in the city of"]
EXAMPLES = [(PROMPTS[0], " Ostra"), (PROMPTS[1], " Tharic")]
CONFIG = {"epochs": 1, "batch_size": 2, "progress": False}
DOCUMENTED = (
    TypeError,
    ValueError,
    OSError,
    NotImplementedError,
    FloatingPointError,
    IndexError,
    rl.EditError,
    rl.NotAffineError,
)


def wrong_values(given: SimpleNamespace) -> dict[str, Callable[[], Any]]:
    """A name for each kind of wrong value, and what makes a fresh one."""
    tokens = given.batch.tokens
    return {
        "None": lambda: None,
        "a generator": lambda: (item for item in PROMPTS),
        "a set": lambda: {"a", "b"},
        "bytes": lambda: b"The tower",
        "a text": lambda: "three",
        "a number": lambda: 3,
        "a fraction": lambda: 0.5,
        "NaN": lambda: NAN,
        "infinity": lambda: INF,
        "-1": lambda: -1,
        "0": lambda: 0,
        "2**70": lambda: HUGE,
        "half a character": lambda: "The \ud800 tower",
        "half a character in a list": lambda: ["The \ud800 tower", PROMPTS[1]],
        "an empty list": list,
        "a list of None": lambda: [None, None],
        "a list of numbers": lambda: [1, 2],
        "a mask as a list": lambda: given.batch.prompt_mask.tolist(),
        "a mask as an array": lambda: given.batch.prompt_mask.numpy(),
        "ids outside the vocabulary": lambda: torch.full_like(tokens, 10**6),
        "a batch of ids outside the vocabulary": lambda: outside(given.batch),
        "numbers with NaN": lambda: torch.full((2, 32), NAN),
        "a tensor of another shape": lambda: torch.ones(3),
        "a dict": lambda: {"a": 1},
        "a Hugging Face model": lambda: given.hf,
        "a bridge": lambda: given.bridge,
        "an object": object,
        "a class": lambda: int,
    }


def outside(batch: rl.Batch) -> rl.Batch:
    return rl.Batch(torch.full_like(batch.tokens, 10**6), batch.attention_mask, batch.prompt_mask, batch.labels)


def given_things() -> SimpleNamespace:
    bridge = make_bridge("gpt2")
    reft = rl.Reft.at_layers(bridge, layers=[0, 1], positions="f1+l1", rank=2, tied=False, seed=0)
    batch = encode(bridge, *zip(*EXAMPLES, strict=True))
    results = {type(result).__name__: result for result in every_result("a")}
    return SimpleNamespace(bridge=bridge, hf=make_hf("gpt2"), reft=reft, batch=batch, results=results)


def arguments(given: SimpleNamespace) -> dict[str, Any]:
    """Parameter -> a value that works wherever it has no default."""
    prompts, answers = map(list, zip(*EXAMPLES, strict=True))
    plain = encode(given.bridge, prompts)
    operators = rl.analysis.decompose(given.bridge, given.reft, [plain])
    patched = rl.analysis.patch(given.bridge, plain, plain, lambda logits, n: logits[:, 0], progress=False)
    return {
        "bridge": given.bridge, "reft": given.reft, "refts": {"a": given.reft, "b": rl.analysis.turned(given.reft, seed=1)},
        "examples": EXAMPLES, "held_out": EXAMPLES, "train": EXAMPLES, "test": EXAMPLES, "pairs": EXAMPLES,
        "prompts": prompts, "answers": answers, "completions": answers, "foils": answers[::-1], "new": answers,
        "old": answers[::-1], "subjects": ["tower", "weaver"], "clean": prompts, "corrupted": prompts[::-1],
        "prompt": prompts[0], "subject": "tower", "group": "a", "wanted": "the answer", "batch": plain, "batches": [plain],
        "base": plain, "source": plain, "metric": lambda logits, n: logits[:, 0], "operator": operators[0],
        "operators": operators, "rank": 2, "seed": 0, "hook_name": POST, "subspace": torch.eye(32)[:2], "first": torch.eye(32)[:2],
        "second": torch.eye(32)[1:3], "activations": torch.randn(40, 32), "d_model": 32, "reference": torch.randn(2, 320),
        "groups": {"a": prompts, "b": prompts}, "edits": given.reft.edits(plain), "tracing": patched, "positions": "l1", "text": "l1",
        "layers": [1], "config": rl.TrainConfig(**CONFIG), "progress": False, "intervention": rl.LoReFT(32, 2),
        "mask": plain.prompt_mask, "tokens": plain.tokens, "attention_mask": plain.attention_mask,
        "prompt_mask": plain.prompt_mask, "labels": plain.labels, "count": 1, "index": 0, "texts": ("a",), "rule": rl.All(),
        "left": rl.All(), "right": rl.Last(1), "spec": {"kind": "All"}, "parts": {"a": given.reft}, "scale": 0.5, "kind": rl.LoReFT,
        "n_classes": 2, "teacher": given.reft, "logits": torch.randn(2, plain.tokens.shape[1], 320), "vector": torch.ones(32),
        "methods": {"edit": rl.baselines.EditAt(rank=1)}, "name": "boolq",
        "n_null": 5, "n_pairs": 2, "n_random": 2, "n_control": 1, "n_orders": 2, "n_draws": 1, "n_resamples": 10,
        "n_placebo": 2, "max_new_tokens": 2,
    }  # fmt: skip


def own_arguments(given: SimpleNamespace, shared: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Function -> its own values for parameters whose names mean something else elsewhere."""
    held = rl.hold(given.bridge, shared["batch"], shared["edits"])
    three = [*EXAMPLES, (PROMPTS[0] + " the", " Ostra")]
    task = rl.tasks.TASKS["boolq"]
    records = [rl.tasks.Record(prompt, answer, answer) for prompt, answer in EXAMPLES]
    pair = {"clean": shared["batch"], "corrupted": encode(given.bridge, PROMPTS[::-1])}
    answers = {"batch": given.batch, "logits": torch.randn(2, 320)}
    dictionary = rl.analysis.save_dictionary(
        rl.analysis.train_dictionary(given.bridge, POST, PROMPTS, features=9, k=2, steps=1),
        f"{tempfile.mkdtemp()}/dictionary",
    )
    causal = {
        "inputs": {"x": "abcdefgh", "y": "abcdefgh"}, "variables": {"v": lambda x: x < "e"},
        "answer": lambda v: " yes" if v else " no", "prompt": lambda x, y: f"{x} {y}",
    }  # fmt: skip
    pairs = [
        rl.Counterfactual(base, source, answer)
        for (base, _), (source, answer) in zip(EXAMPLES, EXAMPLES[::-1], strict=True)
    ]
    swaps = {"reft": rl.Reft([(rl.Site(POST, "l1"), rl.Interchange(32, 2))]), "examples": pairs, "held_out": pairs}
    ones = rl.baselines.Keywords(("Ostra",))
    judges = rl.baselines.Judges(ones, ones, ones)
    other = [(prompt, " by") for prompt, _ in EXAMPLES]
    concept = {
        "concept": "a", "wanted": EXAMPLES, "other": other, "ordinary": other, "validation": ["The"], "test": ["The old"],
        "judges": judges, "max_new_tokens": 1,
    }  # fmt: skip
    problem, vectors = (
        rl.baselines.SteeringProblem(**concept),
        dict.fromkeys(("wanted", "other", "ordinary"), torch.eye(32)),
    )
    steering = {"method": rl.baselines.RandomVector(), "problem": problem, "problems": {0: [problem]}, "factors": [1.0]}
    steering["methods"] = {"random": steering["method"]}
    return {
        "baselines.Judges": dict.fromkeys(("concept", "instruct", "fluency"), ones),
        "baselines.Keywords": {"words": ("a",)},
        "baselines.Fluency": {"natural": EXAMPLES},
        "baselines.SteeringProblem": concept,
        "baselines.TrainedEdit": {"edit": rl.baselines.EditAt(rank=1)},
        **{f"baselines.{name}": steering for name in ("calibrated", "compare_steering", "steered")},
        **{f"baselines.{name}": vectors for name in ("mean_difference", "mean_centred", "principal_difference")},
        **{f"baselines.{name}": {"texts": EXAMPLES} for name in ("read_activations", "nats_per_token")},
        "rl.run_cone": {"held": held},
        "rl.reft_map": {"positions": {"l": rl.Last(1)}, "intervention": rl.LoReFT, "rank": 1},
        "rl.train_seeds": {"seeds": (0,)},
        "rl.dissect": {
            "examples": three,
            "config": rl.DissectConfig(n_null=5, n_pairs=2, n_random=2, n_null_edits=1, progress=False),
        },
        "rl.generate": {"max_new_tokens": 1},
        **{
            f"rl.{name}": {"parts": {"a": 1, "b": 1}}
            for name in ("SplitLoReFT", "SplitInterchange", "BoundlessInterchange")
        },
        "rl.CausalModel": causal,
        "rl.counterfactuals": {"model": rl.CausalModel(**causal), "variables": "v", "n": 2, "n_held_out": 2},
        "rl.Counterfactual": {"base": "a", "source": "b", "label": "c"},
        "rl.Counterfactuals": {"train": (), "held_out": ()},
        "analysis.align": swaps,
        "analysis.alignment": swaps,
        "analysis.null_alignments": {**swaps, "n": 1},
        "analysis.alignment_map": {
            "examples": pairs,
            "held_out": pairs,
            "positions": {"l": rl.Last(1)},
            "layers": [1],
            "rank": 1,
        },
        "analysis.arbitrary_labels": {"examples": pairs},
        "rl.Reft": {"edits": list(given.reft)},
        "rl.merge": {"reft": rl.Reft([(rl.Site(POST, rl.All() | rl.Generated()), rl.SteeringVector(32))])},
        "rl.Reft.save_pretrained": {"directory": tempfile.mkdtemp()},
        "rl.Reft.only": {"names": "edit"},
        "rl.Reft.without": {"names": "edit"},
        "rl.Reft.at_layers": {"rank": 2},
        "analysis.read_directions": {"n_null": 19},
        "analysis.readouts": {"n_null": 19, "methods": ["direct"]},
        "analysis.train_dictionary": {"features": 9, "k": 2, "steps": 1},
        "analysis.load_dictionary": {"path": dictionary},
        "analysis.save_dictionary": {"dictionary": rl.analysis.load_dictionary(dictionary), "path": dictionary},
        "rl.LoReFT.delta": {"resid": torch.randn(2, 32)},
        "rl.Interchange.along": {"basis": torch.eye(32)[:2]},
        "analysis.beside_tracing": {"reft": given.results["ReftMap"], "tracing": given.results["PatchMap"]},
        "analysis.carry": {"target": given.bridge, "prompts": PROMPTS * 3, "held_out": EXAMPLES},
        "analysis.predict_map": {"positions": {"l": rl.Last(1)}, "layers": [1], "n_probes": 2},
        "analysis.beside_training": {
            "predicted": given.results["PredictedMap"],
            "trained": given.results["BesideTraining"].trained,
        },
        "analysis.at_rules": {"result": shared["tracing"], "positions": {"l": rl.Last(1)}},
        "analysis.null_edits": {"n": 1},
        "analysis.attribute": pair,
        "analysis.patch": pair,
        "analysis.mediate": {"over": "heads"},
        "analysis.graph": {"prompts": [PROMPTS[0]] * 2, "n_nodes": 2, "n_sizes": 1},
        "analysis.graph_cost": {"prompts": [PROMPTS[0]] * 2},
        "analysis.at_random_sites": {"reft": rl.Reft([(rl.Site(POST, "l1"), rl.LoReFT(32, 2))])},
        "analysis.directions": {"rank": 1},
        "analysis.identify": {"prompts": PROMPTS * 2, "n_probes": 2, "refit": False},
        "analysis.certify": {"population": PROMPTS, "n_searched": 1, "rounds": 1},
        "analysis.sampled_prompts": {"n": 2, "n_tokens": 2},
        "analysis.explain_finetune": {
            "finetuned": rl.analysis.turned(given.reft, seed=1),
            "ranks": (1,),
            "max_sites": 1,
            "n_replaced": 0,
            "random_finetunes": 0,
            "layers": [1],
        },
        "analysis.explain_finetune_cost": {"n_examples": 4, "n_sites": 1, "n_controls": 0},
        "analysis.random_finetune": {"finetuned": make_bridge("gpt2", seed=1)},
        "analysis.minimal": {"kept": PROMPTS},
        "analysis.calibrate": {"kept": PROMPTS, "kl": 0.01},
        "analysis.off_manifold": {"batches": [shared["batch"]] * 3},
        "positions.from_spec": {"spec": rl.All().spec()},
        "objectives.completion_logprobs": answers,
        "objectives.completion_loss": {
            "logits": torch.randn(*given.batch.labels.shape, 320),
            "labels": given.batch.labels,
        },
        "objectives.predictions": answers,
        "baselines.compare": {"problem": rl.baselines.completed(given.bridge, EXAMPLES, EXAMPLES), "seeds": (0,)},
        "baselines.labelled": {"train": [(PROMPTS[0], 0), (PROMPTS[1], 1)], "test": [(PROMPTS[0], 0), (PROMPTS[1], 1)]},
        "baselines.of_task": {"task": task, "train": records, "tests": [(task, records)]},
        "baselines.unfrozen": {"parameters": [torch.ones(1)]},
        "tasks.evaluate": {"task": task, "records": records},
        "tasks.Record": {"completion": "a", "answer": "a"},
    }


def callables(given: SimpleNamespace) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function, class and method that takes arguments."""
    rooms = {"rl": rl, "analysis": rl.analysis, "plot": rl.plot, "positions": positions}
    rooms |= {"objectives": rl.objectives, "baselines": rl.baselines, "tasks": rl.tasks}
    for room, module in rooms.items():
        for name in module.__all__:
            public = getattr(module, name)
            if inspect.isfunction(public) or (inspect.isclass(public) and not issubclass(public, BaseException)):
                yield f"{room}.{name}", public
    methods = ("compose", "only", "without", "scaled", "__getitem__", "edits", "fwd_hooks", "hooks", "save_pretrained")
    for name in methods:
        yield f"rl.Reft.{name}", getattr(given.reft, name)
    yield from (("rl.Reft.at_layers", rl.Reft.at_layers), ("rl.Reft.from_pretrained", rl.Reft.from_pretrained))
    yield from (("rl.Interchange.along", rl.Interchange.along), ("rl.SteeringVector.of", rl.SteeringVector.of))
    yield from (
        ("rl.Batch.to", given.batch.to),
        ("rl.Positions.mask", rl.Last(1).mask),
        ("rl.LoReFT.delta", rl.LoReFT(32, 2).delta),
    )


def working(
    name: str, public: Callable[..., Any], given: SimpleNamespace, own: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Arguments that work: those without a default, and the few that make a run short."""
    found: dict[str, Any] = {}
    for parameter in inspect.signature(public).parameters.values():
        if parameter.name in own.get(name, {}):
            found[parameter.name] = own[name][parameter.name]
        elif name.startswith("plot.") and parameter.default is parameter.empty:
            words = str(parameter.annotation).replace("Sequence[", " ").replace("]", " ").split()
            found[parameter.name] = next(
                (given.results[word] for word in words if word in given.results), made_log([1.0])
            )
        elif parameter.name in given.shared and (
            parameter.default is parameter.empty
            or parameter.name.startswith("n_")
            or parameter.name in ("config", "progress")
        ):
            found[parameter.name] = given.shared[parameter.name]
    return found


def calls(given: SimpleNamespace) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """The call's name, what is wrong in it, and the call itself."""
    given.shared = arguments(given)
    own = own_arguments(given, given.shared)
    kinds = wrong_values(given)
    for name, public in callables(given):
        if name in SKIPPED:
            continue
        parameters = inspect.signature(public).parameters
        valid = working(name, public, given, own)
        for parameter in parameters:
            for wrong, make in kinds.items():
                if parameter in ("metric", "score", "objective") and callable(make()):
                    continue  # a function of a person's own: what it raises goes on as it is
                yield (
                    f"{name}({parameter})",
                    wrong,
                    lambda valid=valid, public=public, parameter=parameter, make=make: used(
                        public, {**valid, parameter: make()}
                    ),
                )


SKIPPED = {
    *("baselines.PeakMemory", "objectives.Completion", "tasks.Family"),
    *(
        "baselines.Method",
        "baselines.Steering",
        "baselines.compare_configured",
        "objectives.Objective",
        "positions.Positions",
        "rl.Intervention",
        "rl.Positions",
        "tasks.Task",
    ),
    *("tasks.TextTask", "rl.Dissection", "rl.Held", "rl.Preview", "rl.TrainLog", "baselines.Problem"),
    *("rl.load_bridge", "rl.load_dissection", "rl.load_pyreft", "rl.save_pyreft", "rl.Reft.from_pretrained"),
}
"""Nothing to give; abstract; made by the package rather than by people; and files, which have tests of their own."""


def used(public: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Calls it, and enters what it returns if that is a context."""
    many = [p.name for p in inspect.signature(public).parameters.values() if p.kind is p.VAR_POSITIONAL]
    first = [p.name for p in inspect.signature(public).parameters.values() if p.kind is p.POSITIONAL_ONLY]
    named = {name: value for name, value in given.items() if name not in many + first}
    made = public(
        *[given[name] for name in first if name in given], *[given[name] for name in many if name in given], **named
    )
    if hasattr(made, "__enter__") and public is not rl.attach:
        with made:
            pass
    return made


def raw(error: Exception) -> bool:
    """Whether no `raise` of reftlens made it, or one of a type that is not documented."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    raised = code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return not (raised and code.co_filename.startswith(PACKAGE) and isinstance(error, DOCUMENTED))


LONG = ("rl.dissect", "rl.reft_map", "rl.train", "rl.generate", "baselines.", "analysis.", "tasks.", "plot.")
"""What takes long where the wrong value is accepted, such as any object for `progress`."""


def main(every: int) -> int:
    """Makes every so-manyth call, all for 1; prints the raw errors and the counts, and returns how many were raw."""
    warnings.simplefilter("ignore")
    made = own = 0
    faults = []
    for number, (name, wrong, call) in enumerate(calls(given_things())):
        if every > 1 and (number % every or (name.startswith(LONG) and "progress" in name)):
            continue
        made += 1
        try:
            call()
        except Exception as error:
            own += not raw(error)
            if raw(error):
                faults.append(f"{name} with {wrong}: {type(error).__name__}: {str(error)[:200]}")
    print(*faults, f"{made} malformed calls: {own} errors of reftlens, raw: {len(faults)}", sep="\n")
    return len(faults)


if __name__ == "__main__":
    sys.exit(min(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1), 1))

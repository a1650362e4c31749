"""`dissect`: runs the chosen analyses of one trained edit, in order, within the budgets."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import fields, replace

from datasets import Dataset
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import is_main_process
from reftlens.cone.shared import shared
from reftlens.display import progress_bar
from reftlens.dissection.config import DissectConfig
from reftlens.dissection.cost import estimate_cost
from reftlens.dissection.parts import PRESETS, chosen
from reftlens.dissection.parts.part import Part
from reftlens.dissection.result import Dissection
from reftlens.dissection.work import Examples, Work
from reftlens.edit.reft import Reft
from reftlens.training.objectives import Completion


def dissect(
    bridge: TransformerBridge,
    reft: Reft,
    examples: Examples | Dataset,
    config: DissectConfig = DissectConfig(),
    *,
    preset: str | None = None,
    parts: Sequence[str] | None = None,
    unaffected: Examples | Dataset = (),
) -> Dissection:
    """Runs the analyses of a trained edit.

    The edit should change the examples that the base does not answer as wanted, and leave the
    others unchanged. Both kinds are used, so pass both. Under `torchrun` or `accelerate launch`,
    call it in every process, with the base on the process's device: the processes share the work,
    and all return what one process returns.

    Args:
        bridge: the base.
        reft: the trained edit.
        examples: (prompt, wanted completion) pairs, preferably held out rather than used in
            training; or a `datasets.Dataset` with these columns.
        config: parts and budgets. With `progress`, the cost is printed beforehand.
        preset: "quick", "standard" or "full", in place of the config's parts.
        parts: names of parts, such as ["where", "through"], in place of a preset.
        unaffected: pairs about other things, which the edit should leave alone. The part "else"
            counts those that the base answers as given; no other part uses them.

    Raises:
        ValueError: If there are fewer than three examples, one cannot be encoded, there is no such
            preset or part, or both are given.
    """
    if preset is not None and parts is not None:
        raise ValueError(f"pass a preset or parts, not both: got preset {preset!r} and parts {list(parts)}")
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    config = replace(
        config,
        parts=preset or (config.parts if parts is None else tuple(parts)),
        progress=config.progress and is_main_process(),
    )
    running = chosen(config.parts)
    pairs = Completion().read(examples)
    if len(pairs) < 3:
        raise ValueError(f"a dissection needs at least three examples, got {len(pairs)}")
    others = Completion().read(unaffected) if len(unaffected) else []
    if config.progress:
        tqdm.write(f"dissecting: {estimate_cost(bridge, reft, pairs, config)}")
    picked = list(pairs)
    # Several parts take only the first few, which must not be those of one kind.
    random.Random(config.seed).shuffle(picked)
    with shared(bridge, memory_bytes=config.memory_bytes):
        work = Work(bridge, reft, picked[: config.max_examples], pairs, config, others)
        with progress_bar(total=len(running), desc="dissecting", unit="part", shown=config.progress) as bar:
            for part in running:
                bar.set_postfix_str(part.name, refresh=False)
                _run(part, work)
                bar.update(1)
    return Dissection(
        model=str(bridge.cfg.model_name),
        edit=repr(reft),
        n_wanted=len(work.wanted),
        n_kept=len(work.kept),
        left_out=tuple(work.left_out),
        seconds=tuple(work.seconds),
        settings=(*((item.name, str(getattr(config, item.name))) for item in fields(config)), *work.notes),
        parts=tuple(part.name for part in running),
        **work.found,
    )


def _run(part: Part, work: Work) -> None:
    """Runs one part. One that cannot be computed is left out, with the reason."""
    start = time.perf_counter()
    missing = [name for name in part.needs if name in dict(work.left_out)]
    try:
        if missing:
            raise ValueError(f"it starts from {', '.join(missing)}, which was left out")
        work.found |= part.compute(work)
    # Analyses refuse by ValueError. Anything else is a bug, and must not pass for a refusal.
    except ValueError as error:
        work.left_out.append((part.name, str(error)))
    work.seconds.append((part.name, time.perf_counter() - start))

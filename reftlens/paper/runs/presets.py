"""The rows of the paper's tables as named settings (Wu et al. 2024, arXiv:2404.03592, section 4 and its hyperparameters).

`PRESETS` has the rows that train an edit. `ADAPTERS` has the rows of LoRA and DoRA, only for their
parameter counts. Names are method-model-task: `loreft-llama-7b-commonsense`,
`direft-roberta-base-cola`, `dora-llama-3-8b-commonsense`. Scores and percentages are copied from
the paper for comparison; nothing computes with them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, final

from reftlens.paper.runs.config import CONFIG_NAME, RunConfig, read_config

COMMONSENSE = ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa")
ARITHMETIC = ("AQuA", "gsm8k", "mawps", "SVAMP")
GLUE = ("MNLI", "SST-2", "MRPC", "CoLA", "QNLI", "QQP", "RTE", "STS-B")

MODELS: dict[str, str] = {
    "llama-7b": "yahma/llama-7b-hf",
    "llama-13b": "yahma/llama-13b-hf",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B",
    "roberta-base": "FacebookAI/roberta-base",
    "roberta-large": "FacebookAI/roberta-large",
}
"""Name of each of the paper's base models in presets -> its name on the hub."""

Family = Literal["commonsense", "arithmetic", "instruct", "glue"]


@final
@dataclass(frozen=True)
class Preset:
    """One row: the settings of its edit, and the results in the paper."""

    name: str
    family: Family
    config: RunConfig
    """The settings, with the first seed."""
    seeds: tuple[int, ...]
    """The paper reports the mean over these seeds."""
    percent: str
    """Trained parameters as a percentage of the base's parameters, as printed in the paper."""
    score: float | None = None
    """Mean score over the row's tasks; None if it is unknown here."""

    @property
    def method(self) -> str:
        """The method in the settings."""
        return self.config.method

    @property
    def model(self) -> str:
        """The model in the settings."""
        return self.config.model

    @property
    def trained(self) -> str:
        """A short description of the trained edit."""
        config = self.config
        layers = "all layers" if config.layers == "all" else f"layers {';'.join(map(str, config.layers))}"
        return f"{config.method} r{config.rank}, {config.positions}{'' if config.tied else ' untied'}, {layers}"


@final
@dataclass(frozen=True)
class Adapter:
    """A row of LoRA or DoRA: low-rank changes of some weight matrices."""

    name: str
    family: Family
    model: str
    """Name on the hub."""
    method: Literal["LoRA", "DoRA"]
    """DoRA also trains a magnitude for each output row."""
    rank: int
    targets: tuple[str, ...]
    """Last component of the names of the adapted linear layers."""
    percent: str | None
    """As printed; None if it is unknown here. The paper copied these rows from other papers, which
    could not be checked. The percentages are listed because they agree with the counts from rank
    and matrices.
    """
    of: Literal["base", "base and adapter"]
    """The denominator of the percentage, which differs between the sources of the rows."""
    score: float | None = None

    @property
    def trained(self) -> str:
        """A short description of the trained adapter."""
        return f"{self.method} r{self.rank} on {', '.join(self.targets)}"


def preset_named(name: str) -> Preset:
    """Returns a preset that can be trained.

    Raises:
        ValueError: If the name is unknown or belongs to an adapter. The message suggests the
            nearest names.
    """
    if name in ADAPTERS:
        raise ValueError(
            f"{name} is a preset of {ADAPTERS[name].method}, listed only for its parameter count: train a ReFT preset"
        )
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}. {nearest(name)}")
    return PRESETS[name]


def nearest(name: str) -> str:
    """Returns a hint for an unknown preset: the nearest names, or the command that lists all."""
    near = difflib.get_close_matches(name, ROWS, n=3)
    return f"Did you mean {' or '.join(near)}?" if near else "List all with: reftlens presets"


# Every setting of a row is written out here, even if it is the default of RunConfig, because
# defaults may change.
_ADAMW: dict[str, Any] = {"schedule": "linear", "max_grad_norm": 1.0, "dtype": "bfloat16"}
_REASONING: dict[str, Any] = {
    **_ADAMW, "layers": "all", "rank": 8, "positions": "f7+l7", "tied": True, "lr": 9e-4, "warmup_ratio": 0.1,
    "weight_decay": 0.0, "dropout": 0.0, "batch_size": 16, "gradient_accumulation": 2, "max_length": 512,
}  # fmt: skip
_COMMONSENSE: dict[str, Any] = {
    **_REASONING, "task": "commonsense_170k", "eval_tasks": COMMONSENSE, "epochs": 6, "max_new_tokens": 32,
}  # fmt: skip
# Greedy decoding, as in the README of the reference code; the paper's appendix mentions beam search
# and sampling.
_ARITHMETIC: dict[str, Any] = {
    **_REASONING, "task": "math_10k", "eval_tasks": ARITHMETIC, "epochs": 12, "max_new_tokens": 512,
}  # fmt: skip
_INSTRUCT: dict[str, Any] = {
    **_ADAMW, "task": "ultrafeedback", "layers": (3, 9, 18, 24), "rank": 4, "positions": "f5+l5", "tied": False,
    "lr": 9e-4, "warmup_ratio": 0.0, "weight_decay": 0.0, "dropout": 0.0, "epochs": 9, "batch_size": 4,
    "gradient_accumulation": 32, "max_length": 768, "max_new_tokens": 2048, "no_repeat_ngram_size": 5,
    "repetition_penalty": 1.1,
}  # fmt: skip


@dataclass(frozen=True)
class _GlueTable:
    """Settings that differ between GLUE's tasks, in the order of `GLUE`."""

    prefix: tuple[int, ...]
    dropout: tuple[float | int, ...]
    lr: tuple[int, ...]
    """In units of 1e-4."""
    warmup: tuple[float | int, ...]
    epochs: tuple[int, ...]
    decay: tuple[float | int, ...] = (0, 0, 0, 0, 0, 0, 0, 0)
    scores: tuple[float, ...] | None = None


_GLUE_TABLES = {
    ("LoReFT", "roberta-base"): _GlueTable(
        prefix=(1, 3, 3, 3, 11, 11, 3, 3),
        dropout=(0.05, 0.1, 0.05, 0.2, 0.05, 0.05, 0.05, 0.05),
        lr=(6, 6, 3, 4, 9, 6, 9, 6),
        warmup=(0.06, 0.1, 0, 0.005, 0.1, 0, 0, 0.03),
        epochs=(40, 40, 40, 60, 20, 40, 60, 60),
        scores=(83.1, 93.4, 89.2, 60.4, 91.2, 87.4, 79.0, 90.0),
    ),
    ("LoReFT", "roberta-large"): _GlueTable(
        prefix=(1, 3, 3, 3, 11, 11, 3, 3),
        dropout=(0.05, 0.05, 0.2, 0.2, 0.05, 0.05, 0.05, 0.05),
        lr=(6, 6, 3, 1, 9, 6, 6, 8),
        warmup=(0, 0.1, 0.06, 0.2, 0.1, 0.06, 0, 0.2),
        epochs=(20, 20, 30, 30, 20, 20, 30, 30),
        scores=(89.2, 96.2, 90.1, 68.0, 94.1, 88.5, 87.5, 91.6),
    ),
    ("DiReFT", "roberta-base"): _GlueTable(
        prefix=(1, 3, 5, 1, 11, 11, 1, 3),
        dropout=(0.05, 0.1, 0.05, 0, 0.05, 0.05, 0, 0.05),
        lr=(6, 6, 3, 6, 9, 6, 9, 6),
        warmup=(0.06, 0.1, 0.1, 0, 0.1, 0, 0, 0.03),
        epochs=(40, 40, 40, 60, 20, 40, 60, 60),
        decay=(0, 0, 0, 0.04, 0, 0, 0.04, 0),
    ),
    ("DiReFT", "roberta-large"): _GlueTable(
        prefix=(1, 3, 1, 1, 11, 7, 3, 3),
        dropout=(0.05, 0.05, 0.1, 0.15, 0.05, 0.05, 0.05, 0.05),
        lr=(6, 6, 9, 9, 9, 9, 6, 8),
        warmup=(0, 0.1, 0, 0, 0.1, 0.1, 0, 0.1),
        epochs=(20, 20, 50, 60, 20, 20, 30, 30),
        decay=(0, 0, 0, 0, 0, 0, 0.006, 0),
    ),
}


def _glue() -> list[Preset]:
    rows = []
    for (method, model), table in _GLUE_TABLES.items():
        for place, task in enumerate(GLUE):
            short = task.lower().replace("-", "")
            config = RunConfig(
                MODELS[model],
                task=task,
                eval_tasks=(task,),
                validation_split="validation",
                max_length=256,
                method=method,
                layers="all",
                rank=1,
                positions=f"f{table.prefix[place]}",
                tied=True,
                dropout=float(table.dropout[place]),
                epochs=table.epochs[place],
                batch_size=32,
                gradient_accumulation=1,
                lr=table.lr[place] / 10_000,
                schedule="linear",
                warmup_ratio=float(table.warmup[place]),
                weight_decay=float(table.decay[place]),
                dtype="float32",
            )
            score = None if table.scores is None else table.scores[place]
            percent = ".015" if model == "roberta-base" else ".014"
            rows.append(
                _row(config, f"{model}-{short}", "glue", seeds=(42, 43, 44, 45, 46), percent=percent, score=score)
            )
    return rows


def _row(
    config: RunConfig, rest: str, family: Family, *, seeds: tuple[int, ...], percent: str, score: float | None
) -> Preset:
    return Preset(f"{config.method.lower()}-{rest}", family, replace(config, seed=seeds[0]), seeds, percent, score)


_SCORES = {
    "commonsense": {
        "LoReFT": {"llama-7b": 80.2, "llama-13b": 83.3, "llama-2-7b": 81.8, "llama-3-8b": 86.6},
        "DiReFT": {"llama-7b": 79.0, "llama-13b": 82.2, "llama-2-7b": 80.9, "llama-3-8b": 85.4},
    },
    "arithmetic": {
        "LoReFT": {"llama-7b": 42.6, "llama-13b": 49.6},
        "DiReFT": {"llama-7b": 40.6, "llama-13b": 48.0},
        "LobiReFT": {"llama-7b": 31.3},
        "ConsReFT": {"llama-7b": 37.1},
        "AdditiveLoReFT": {"llama-7b": 42.9},
        "NoReFT": {"llama-7b": 42.4},
    },
}
_ABLATIONS = ("NoReFT", "AdditiveLoReFT", "ConsReFT", "LobiReFT")
_FULL = {"llama-7b": ".031", "llama-13b": ".025", "llama-2-7b": ".031", "llama-3-8b": ".026"}
_CONSTANT = {"llama-7b": ".016", "llama-13b": ".013"}


def _reasoning() -> list[Preset]:
    rows = []
    families: tuple[tuple[Family, dict[str, Any]], ...] = (("commonsense", _COMMONSENSE), ("arithmetic", _ARITHMETIC))
    for family, settings in families:
        ablated = dict.fromkeys(_ABLATIONS, ("llama-7b", "llama-13b"))
        main = tuple(_SCORES[family]["LoReFT"])
        for method, models in ({"LoReFT": main, "DiReFT": main} | ablated).items():
            for model in models:
                config = RunConfig(MODELS[model], method=method, **settings)
                percent = (_CONSTANT if method in ("ConsReFT", "LobiReFT") else _FULL)[model]
                score = _SCORES[family].get(method, {}).get(model)
                rows.append(_row(config, f"{model}-{family}", family, seeds=(42, 43, 44), percent=percent, score=score))
    return rows


def _instruct() -> list[Preset]:
    model = MODELS["llama-2-7b"]
    # The paper reports two seeds without naming them.
    seeds, name = (42, 43), "llama-2-7b-instruct"
    whole = RunConfig(model, method="LoReFT", **_INSTRUCT)
    return [
        _row(whole, name, "instruct", seeds=seeds, percent=".0039", score=85.6),
        _row(replace(whole, method="DiReFT"), name, "instruct", seeds=seeds, percent=".0039", score=84.85),
        _row(replace(whole, rank=2), f"{name}-half", "instruct", seeds=seeds, percent=".0019", score=84.12),
        _row(replace(whole, n_train=1000), f"{name}-1k", "instruct", seeds=seeds, percent=".0039", score=81.91),
    ]


_WIDE = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")


def _adapters() -> list[Adapter]:
    # Percentages of LoRA, DoRA and DoRA at half the rank; then the scores of the first two.
    commonsense: dict[str, tuple[tuple[str, str, str], tuple[float | None, float | None]]] = {
        "llama-7b": ((".826", ".838", ".427"), (74.7, 78.1)),
        "llama-13b": ((".670", ".681", ".347"), (80.5, 81.5)),
        "llama-2-7b": ((".826", ".838", ".427"), (None, None)),
        "llama-3-8b": ((".700", ".710", ".361"), (80.8, 85.2)),
    }
    rows: list[Adapter] = []

    def add(name: str, family: Family, rank: int, percent: str | None, score: float | None = None) -> None:
        method, model = name.split("-", 1)
        hub = MODELS[model.rpartition(f"-{family}")[0]]
        targets = {"glue": ("query", "value"), "instruct": ("q_proj", "v_proj")}.get(family, _WIDE)
        of: Any = "base" if family in ("glue", "instruct") else "base and adapter"
        kind: Any = {"lora": "LoRA", "dora": "DoRA"}[method]
        rows.append(Adapter(name, family, hub, kind, rank, targets, percent, of, score))

    for model, ((lora, dora, half), (lora_score, dora_score)) in commonsense.items():
        add(f"lora-{model}-commonsense", "commonsense", 32, lora, lora_score)
        add(f"dora-{model}-commonsense", "commonsense", 32, dora, dora_score)
        add(f"dora-{model}-commonsense-half", "commonsense", 16, half)
    add("lora-llama-7b-arithmetic", "arithmetic", 32, ".826", 46.9)
    add("lora-llama-13b-arithmetic", "arithmetic", 32, ".670", 51.1)
    # This rank and these layers reproduce the abstract's ratios to LoReFT, 32 and 16.
    add("lora-llama-2-7b-instruct", "instruct", 16, ".1245", 81.48)
    add("lora-roberta-base-glue", "glue", 8, None, 84.7)
    add("lora-roberta-large-glue", "glue", 8, None, 88.1)
    return rows


PRESETS: dict[str, Preset] = {row.name: row for row in (*_reasoning(), *_instruct(), *_glue())}
"""Rows that train an edit, by name."""
ADAPTERS: dict[str, Adapter] = {row.name: row for row in _adapters()}
"""Rows of LoRA and DoRA, by name, for their parameter counts."""
ROWS: dict[str, Preset | Adapter] = {**PRESETS, **ADAPTERS}
"""All rows, by name."""


def read_settings(source: str, overrides: Mapping[str, Any] = MappingProxyType({})) -> RunConfig:
    """Returns the settings that a command-line argument names.

    Args:
        source: a preset, a TOML file (which may extend one by `preset =
            "loreft-llama-7b-commonsense"`), or a run's folder.
        overrides: values by name that replace those settings.

    Raises:
        ValueError: If the source is none of these, or a setting is unknown or invalid.
        OSError: If the file cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        path = path / CONFIG_NAME
        if not path.is_file():
            raise ValueError(
                f"{source} is a folder without a {CONFIG_NAME}: pass a preset, a TOML file or a run's folder. A saved edit is "
                "trained further in Python: rl.Reft.from_pretrained, then rl.train"
            )
    elif path.suffix != ".toml" and not path.is_file():
        return preset_named(source).config.with_values(overrides)
    values = read_config(path)
    base = values.pop("preset", None)
    if base is None:
        return RunConfig.from_values({**values, **overrides})
    return preset_named(str(base)).config.with_values(values).with_values(overrides)

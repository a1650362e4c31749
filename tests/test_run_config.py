"""Settings of a run: what a file, a flag and a preset may say, and that a run's own file says all of it."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reftlens.paper.runs.config import RunConfig, parse_settings, read_config
from reftlens.paper.runs.presets import ADAPTERS, GLUE, PRESETS, read_settings

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x7f"), min_size=1)
LENGTH = st.none() | st.integers(1, 10**6)


# Other processes may hold this one up.
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(
    model=TEXT,
    data=st.none() | TEXT,
    eval_tasks=st.lists(TEXT).map(tuple),
    layers=st.just("all") | st.lists(st.integers(-9, 99), min_size=1).map(tuple),
    rank=LENGTH,
    lr=st.floats(1e-12, 1e3),
    n_train=LENGTH,
    tied=st.booleans(),
)
def test_a_written_config_is_read_as_it_was(tmp_path_factory, **values) -> None:
    config = RunConfig(**values)
    file = tmp_path_factory.getbasetemp() / "config.toml"
    file.write_text(config.to_toml(), encoding="utf-8")
    assert RunConfig.from_values(read_config(file)) == config


def test_every_setting_of_a_preset_can_be_replaced() -> None:
    """By the text after an equals sign, as `--set` has it."""
    texts = {"layers": "1,4", "eval_tasks": "boolq;piqa", "tied": "false", "precision": "bfloat16", "data": "own.jsonl"}
    kinds = {"str": "text", "int": "7", "float": "0.5"}
    for field in fields(RunConfig):
        # A fraction divides the run's own data, so there must be some.
        base = RunConfig("facts-small", data="all.jsonl" if field.name == "eval_fraction" else None)
        kind = next((kind for kind in kinds if str(field.type).startswith(kind)), "str")
        text = texts.get(field.name, kinds[kind])
        changed = base.with_values(parse_settings([f"{field.name}={text}"]))
        assert getattr(changed, field.name) != getattr(base, field.name), field.name
        assert sum(getattr(changed, f.name) != getattr(base, f.name) for f in fields(RunConfig)) == 1


def test_lists_and_nothing_as_they_are_written_on_a_command_line() -> None:
    config = RunConfig("m", rank=4, n_train=5, eval_tasks=("boolq",))
    changed = config.with_values(parse_settings(["layers=3;9", "rank=", "n_train=", "eval_tasks=[]", "lr=1"]))
    assert changed == RunConfig("m", layers=(3, 9), rank=None, lr=1.0)
    assert config.with_values(parse_settings(["layers=all"])).layers == "all"
    assert config.with_values(parse_settings(["layers=4"])).layers == (4,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lrr": 1}, "Unknown setting 'lrr'. Did you mean lr?"),
        ({"xyzzy": 1}, "Unknown setting 'xyzzy'. Choose from: model, task"),
        ({"lr": "fast"}, "lr must be a number, got 'fast'"),
        ({"batch_size": 1.5}, "batch_size must be an integer, got 1.5"),
        ({"batch_size": True}, "batch_size must be an integer, got True"),
        ({"batch_size": None}, "batch_size must be an integer, got None"),
        ({"tied": 1}, "tied must be true or false, got 1"),
        ({"layers": "some"}, "layers must be a list of integers or 'all', got 'some'"),
        ({"layers": [1, "a"]}, "layers must be a list of integers or 'all', got [1, 'a']"),
        ({"precision": "half"}, "precision must be 'float32' or 'bfloat16', got 'half'"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"task": "boolq", "data": "own.jsonl"}, "set task or data, not both: got task=boolq and data=own.jsonl"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(values, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RunConfig("facts-small").with_values(values)


def test_a_file_may_build_on_a_preset(tmp_path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('preset = "loreft-llama-7b-commonsense"\nmodel = "gpt2"\nepochs = 1\n')
    preset = PRESETS["loreft-llama-7b-commonsense"].config
    assert read_settings(str(file), {"lr": 1}) == preset.with_values({"model": "gpt2", "epochs": 1, "lr": 1.0})
    file.write_text('preset = "no-such-preset"\n')
    with pytest.raises(ValueError, match="Unknown preset 'no-such-preset'"):
        read_settings(str(file))
    file.write_text("model = \n")
    with pytest.raises(ValueError, match=r"mine\.toml is not a TOML file: .*line 1"):
        read_settings(str(file))
    file.write_text("epochs = 1\n")
    with pytest.raises(ValueError, match="the settings have no model"):
        read_settings(str(file))
    with pytest.raises(ValueError, match=r"is a folder without a config\.toml"):
        read_settings(str(tmp_path))


def test_presets_are_the_papers_rows() -> None:
    """A few cells of the tables of hyperparameters, read there and not here."""
    cola = PRESETS["loreft-roberta-large-cola"].config
    assert (cola.lr, cola.epochs, cola.dropout, cola.warmup_ratio, cola.positions) == (1e-4, 30, 0.2, 0.2, "f3")
    rte = PRESETS["direft-roberta-large-rte"].config
    assert (rte.lr, rte.epochs, rte.weight_decay, rte.batch_size) == (6e-4, 30, 0.006, 32)
    arithmetic = PRESETS["loreft-llama-13b-arithmetic"].config
    assert (arithmetic.epochs, arithmetic.batch_size, arithmetic.gradient_accumulation) == (12, 16, 2)
    instruct = PRESETS["direft-llama-2-7b-instruct"].config
    assert (instruct.layers, instruct.rank, instruct.tied, instruct.max_length) == ((3, 9, 18, 24), 4, False, 768)
    glue = [row for row in PRESETS.values() if row.family == "glue"]
    assert len(glue) == 2 * 2 * len(GLUE)
    assert not PRESETS.keys() & ADAPTERS.keys()


def test_every_preset_names_tasks_and_methods_that_exist() -> None:
    from reftlens.paper.runs.examples import eval_tasks, training_task
    from reftlens.paper.runs.parameters import method_named

    for preset in PRESETS.values():
        assert method_named(preset.config.method).__name__ == preset.method
        assert training_task(preset.config).family == preset.family
        assert all(task.family == preset.family for task in eval_tasks(preset.config))
        assert preset.config.seed == preset.seeds[0]

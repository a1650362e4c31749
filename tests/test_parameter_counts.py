"""The paper's parameter counts and percentages, from the real classes in the real sizes (nothing is allocated)."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache

import pytest
import torch
from architectures import make_hf
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

import reftlens as rl
from reftlens.organisms import ORGANISMS
from reftlens.paper.runs.config import RunConfig
from reftlens.paper.runs.parameters import count_parameters
from reftlens.paper.runs.presets import ADAPTERS, PRESETS

LLAMA = {
    "7B": LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32),
    "13B": LlamaConfig(
        vocab_size=32000, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    ),
    "Llama-3-8B": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_key_value_heads=8
    ),
}
ROBERTA = {
    "base": RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
    "large": RobertaConfig(
        vocab_size=50265,
        max_position_embeddings=514,
        type_vocab_size=1,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    ),
}


@cache
def base(name: str) -> tuple[int, int, int]:
    """Parameters, layers and width of a base model; the encoder alone for RoBERTa, without a pooler."""
    with torch.device("meta"):
        if name in LLAMA:
            config, model = LLAMA[name], LlamaForCausalLM(LLAMA[name])
        else:
            config, model = ROBERTA[name], RobertaModel(ROBERTA[name], add_pooling_layer=False)
    return sum(p.numel() for p in model.parameters()), config.num_hidden_layers, config.hidden_size


def trained(name, kind, rank, layers, positions, tied) -> int:
    """The count of a whole layout, through `Reft`; the hooks need no model."""
    _, n_layers, d_model = base(name)
    rule = rl.parse(positions)
    parts = [rule] if tied else [rl.First(5), rl.Last(5)]
    chosen = range(n_layers) if layers == "all" else layers
    with torch.device("meta"):
        pairs = [
            (rl.Site(f"blocks.{layer}.hook_resid_post", part), kind(d_model, rank))
            for layer in chosen
            for part in parts
        ]
        return rl.Reft(pairs).n_parameters()


@pytest.mark.parametrize(
    ("name", "kind", "rank", "layers", "positions", "tied", "count", "percent", "printed"),
    [
        ("7B", rl.LoReFT, 8, "all", "f7+l7", True, 2_097_408, ".031126", ".031"),
        ("7B", rl.DiReFT, 8, "all", "f7+l7", True, 2_097_408, ".031126", ".031"),
        ("7B", rl.NoReFT, 8, "all", "f7+l7", True, 2_097_408, ".031126", ".031"),
        ("7B", rl.AdditiveLoReFT, 8, "all", "f7+l7", True, 2_097_408, ".031126", ".031"),
        ("13B", rl.LoReFT, 8, "all", "f7+l7", True, 3_277_120, ".025178", ".025"),
        ("13B", rl.DiReFT, 8, "all", "f7+l7", True, 3_277_120, ".025178", ".025"),
        ("Llama-3-8B", rl.LoReFT, 8, "all", "f7+l7", True, 2_097_408, ".026119", ".026"),
        ("7B", rl.ConsReFT, 8, "all", "f7+l7", True, 1_048_832, ".015565", ".016"),
        ("7B", rl.LobiReFT, 8, "all", "f7+l7", True, 1_048_832, ".015565", ".016"),
        ("13B", rl.ConsReFT, 8, "all", "f7+l7", True, 1_638_720, ".012590", ".013"),
        ("13B", rl.LobiReFT, 8, "all", "f7+l7", True, 1_638_720, ".012590", ".013"),
        ("7B", rl.LoReFT, 4, (3, 9, 18, 24), "f5+l5", False, 262_176, ".003891", ".0039"),
        ("7B", rl.DiReFT, 4, (3, 9, 18, 24), "f5+l5", False, 262_176, ".003891", ".0039"),
        ("7B", rl.LoReFT, 2, (3, 9, 18, 24), "f5+l5", False, 131_088, ".001945", ".0019"),
        ("base", rl.LoReFT, 1, "all", "f3", True, 18_444, ".014868", ".015"),
        ("base", rl.DiReFT, 1, "all", "f3", True, 18_444, ".014868", ".015"),
        ("large", rl.LoReFT, 1, "all", "f3", True, 49_176, ".013879", ".014"),
        ("large", rl.DiReFT, 1, "all", "f3", True, 49_176, ".013879", ".014"),
    ],
)
def test_counts_and_percentages_are_the_papers(
    name, kind, rank, layers, positions, tied, count, percent, printed
) -> None:
    ours, whole = trained(name, kind, rank, layers, positions, tied), base(name)[0]
    assert ours == count
    assert f"{100 * ours / whole:.6f}" == "0" + percent
    assert f"{100 * ours / whole:.{len(printed) - 1}f}" == "0" + printed


def test_sizes_of_the_bases_are_the_known_ones() -> None:
    """Known from the released checkpoints, not from this code."""
    assert base("7B")[0] == 6_738_415_616
    assert base("13B")[0] == 13_015_864_320
    assert base("Llama-3-8B")[0] == 8_030_261_248


def test_red_is_two_vectors_a_layer() -> None:
    _, layers, d_model = base("7B")
    with torch.device("meta"):
        edits = [(rl.Site(f"blocks.{layer}.hook_mlp_out", rl.All()), rl.RED(d_model)) for layer in range(layers)]
        assert rl.Reft(edits).n_parameters() == 262_144


# The same through presets, which is what `reftlens params` prints.


def digits(percent: float, printed: str) -> str:
    """A percentage with as many digits as the paper prints, in its way of writing."""
    return f"{percent:.{len(printed) - 1}f}".removeprefix("0")


@pytest.mark.sampled(20)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_the_printed_percentage(name) -> None:
    preset = PRESETS[name]
    assert digits(count_parameters(preset.config).percent, preset.percent) == preset.percent


@pytest.mark.parametrize("name", [name for name, row in ADAPTERS.items() if row.percent is not None])
def test_every_row_of_lora_and_dora_has_the_printed_percentage(name) -> None:
    row = ADAPTERS[name]
    count = count_parameters(row)
    share = count.percent if row.of == "base" else count.percent_of_both
    assert digits(share, str(row.percent)) == row.percent


def test_lora_and_dora_by_hand() -> None:
    """r (in + out) for each matrix of LLaMA-7B; DoRA has `out` more."""
    shapes = [(4096, 4096)] * 3 + [(4096, 11008), (11008, 4096)]
    lora = 32 * sum(32 * (into + out) for into, out in shapes)
    assert count_parameters(ADAPTERS["lora-llama-7b-commonsense"]).trained == lora == 56_098_816
    dora = lora + 32 * sum(out for _, out in shapes)
    assert count_parameters(ADAPTERS["dora-llama-7b-commonsense"]).trained == dora


def test_the_abstracts_ratios_to_lora() -> None:
    """16x on GLUE, 27x on commonsense, 32x on instruct, 64x at half of it."""
    for lora, reft, ratio in (
        ("lora-roberta-base-glue", "loreft-roberta-base-cola", 16),
        ("lora-llama-7b-commonsense", "loreft-llama-7b-commonsense", 27),
        ("lora-llama-2-7b-instruct", "loreft-llama-2-7b-instruct", 32),
        ("lora-llama-2-7b-instruct", "loreft-llama-2-7b-instruct-half", 64),
    ):
        ours = count_parameters(PRESETS[reft].config).trained
        assert round(count_parameters(ADAPTERS[lora]).trained / ours) == ratio


# peft 0.21 asks transformers 5.23 by an old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_are_what_peft_makes(dora) -> None:
    peft = pytest.importorskip("peft")
    row = replace(ADAPTERS["lora-llama-7b-commonsense"], rank=4, method="DoRA" if dora else "LoRA")
    with tempfile.TemporaryDirectory() as directory:
        make_hf("llama").save_pretrained(directory)
        model = LlamaForCausalLM.from_pretrained(directory)
        count = count_parameters(row, model=directory)
    settings = peft.LoraConfig(r=row.rank, target_modules=list(row.targets), use_dora=dora)
    trained, both = peft.get_peft_model(model, settings).get_nb_trainable_parameters()
    assert (count.trained, count.base + count.trained) == (trained, both)


def test_the_count_is_that_of_the_edit_a_run_trains() -> None:
    """On a model that is here, against `Reft.at_layers`; untied, so that parts differ from layers."""
    config = RunConfig("facts-small", layers=(1, -1), rank=3, positions="f2+l2", tied=False)
    bridge = rl.load_bridge("facts-small")
    reft = rl.Reft.at_layers(bridge, layers=[1, -1], rank=3, positions="f2+l2", tied=False)
    count = count_parameters(config)
    assert count.trained == reft.n_parameters()
    assert list(count.parts) == [
        f"blocks.{layer}.hook_resid_post at {part}(2, half=True)" for layer in (1, 5) for part in ("First", "Last")
    ]
    # Of the bridge's own parameters some are there twice: queries, keys and values also apart.
    assert count.base == AutoModelForCausalLM.from_pretrained(ORGANISMS["facts-small"]).num_parameters()


def test_what_cannot_be_counted_says_so() -> None:
    with pytest.raises(ValueError, match=r"cannot find the shape of 'no-such-model'.*llama-7b"):
        count_parameters(PRESETS["loreft-llama-7b-commonsense"].config, model="no-such-model")
    with pytest.raises(ValueError, match="has no linear layers named q_proj"):
        count_parameters(ADAPTERS["lora-llama-7b-commonsense"], model="facts-small")
    with pytest.raises(ValueError, match="layer 9 does not exist: the model has layers 0 to 5"):
        count_parameters(RunConfig("facts-small", layers=(9,)))
    with pytest.raises(ValueError, match=r"Unknown method 'LoRTF'. Choose from: LoReFT"):
        count_parameters(RunConfig("facts-small", method="LoRTF"))
    with pytest.raises(ValueError, match=r"the width of attn\.hook_z is unknown without loading the model"):
        count_parameters(RunConfig("facts-small", hook="attn.hook_z"))

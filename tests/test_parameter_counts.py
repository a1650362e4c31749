"""The paper's parameter counts and percentages, from the real classes in the real sizes (nothing is allocated)."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

import reftlens as rl

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

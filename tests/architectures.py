"""Tiny random models of every architecture that the README's table speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

CAUSAL = (
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi",
    "olmo2",
)
MASKED = ("bert", "roberta")
FURTHER = ("mamba2", "falcon_h1", "mixtral", "deepseek_v3")
"""One of each further kind: recurrent, hybrid, a mixture of experts, and multi-head latent attention."""
TWELVE = CAUSAL + MASKED
"""What long tests run on."""
ARCHITECTURES = TWELVE + FURTHER
"""By the `model_type` of their configs."""
EVERY_TIME = ("gpt2", "gpt_neox", "llama", "gemma2", "roberta")
"""Those on which long tests run by default; on all others `make test-all` runs them."""


def others_slow(architectures: Sequence[str]) -> list[Any]:
    """Values for `parametrize`: all of them, the ones that are not run every time marked slow."""
    return [name if name in EVERY_TIME else pytest.param(name, marks=pytest.mark.slow) for name in architectures]


N_LAYERS, D_MODEL, D_MLP, N_HEADS, N_KV_HEADS, D_HEAD = 3, 32, 48, 4, 2, 8
_GROUPED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi", "olmo2")


def make_config(architecture: str, *, n_positions: int = 64, window: int = 4) -> Any:
    """3 layers of width 32 with 4 heads; 2 key-value heads and a sliding window where the architecture has them."""
    tokens = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    if architecture == "gpt2":
        return AutoConfig.for_model(
            architecture, n_layer=N_LAYERS, n_embd=D_MODEL, n_head=N_HEADS, n_positions=n_positions, **tokens
        )
    if architecture == "mamba2":
        return AutoConfig.for_model(
            architecture, num_hidden_layers=N_LAYERS, hidden_size=D_MODEL, expand=2, num_heads=N_HEADS, head_dim=16,
            n_groups=1, state_size=D_HEAD, **tokens,
        )  # fmt: skip
    size = {
        "num_hidden_layers": N_LAYERS,
        "hidden_size": D_MODEL,
        "intermediate_size": D_MLP,
        "num_attention_heads": N_HEADS,
        "max_position_embeddings": n_positions + 2 * (architecture == "roberta"),
    }
    if architecture in _GROUPED:
        size |= {"num_key_value_heads": N_KV_HEADS}
    if architecture in ("qwen3", "gemma2", "gemma3_text"):
        size |= {"head_dim": D_HEAD}
    if architecture in ("mistral", "gemma2", "gemma3_text"):
        size |= {"sliding_window": window}
    return AutoConfig.for_model(architecture, **size, **_FURTHER.get(architecture, {}), **tokens)


_EXPERTS = {"num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_FURTHER: dict[str, dict[str, int]] = {
    "mixtral": {"num_key_value_heads": N_KV_HEADS, **_EXPERTS},
    "deepseek_v3": {
        "num_key_value_heads": N_HEADS, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "first_k_dense_replace": 1, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, **_EXPERTS,
    },
    "falcon_h1": {
        "num_key_value_heads": N_KV_HEADS, "head_dim": D_HEAD, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8,
        "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 1,
    },
}  # fmt: skip


def make_hf(
    architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, n_positions: int = 64
) -> PreTrainedModel:
    auto = AutoModelForMaskedLM if architecture in MASKED else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = auto.from_config(
            make_config(architecture, n_positions=n_positions), attn_implementation="eager"
        )
        # Larger than the usual initialisation, so that an edit moves the logits well above rounding.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.15)
        return model.to(dtype).eval()

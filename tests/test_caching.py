"""The key-value cache reaches attention by whichever name transformers gives it."""

from __future__ import annotations

import inspect

import pytest
import torch
from conftest import PROMPTS, make_bridge, make_hf
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformers import DynamicCache, GenerationConfig

import reftlens as rl
from reftlens.bridge import cache_in, cache_name, mend_attention, with_cache
from reftlens.bridge.caching import _NEW, _OLD

KINDS = ("gpt2", "llama", "gpt_neox")


@pytest.mark.parametrize("kind", KINDS)
def test_attention_reads_the_cache_under_either_name(kind) -> None:
    """Each attention is called as each release calls it; what it adds to the cache says whether it read it."""
    bridge = make_bridge(kind)
    batch = rl.encode(bridge, PROMPTS[:1])
    seen = {}

    def keep(module, args, kwargs):
        seen.setdefault(module, (args, kwargs))

    modules = [module for module in bridge.modules() if isinstance(module, AttentionBridge)]
    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    bridge(batch.tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    for module in modules:
        args, kwargs = seen[module]
        plain = {name: value for name, value in kwargs.items() if name not in (_OLD, _NEW, "layer_past")}
        for name in (_OLD, _NEW):
            cache = DynamicCache()
            module(*args, **plain, **{name: cache})
            assert cache.get_seq_length(module._layer_idx) == batch.tokens.shape[1], name


@pytest.mark.parametrize("kind", KINDS)
def test_a_bridge_of_the_librarys_own_decodes_as_the_model_does(kind) -> None:
    """`boot_transformers` mends nothing, so the first function that runs cached does."""
    loaded, hf = make_bridge(kind), make_hf(kind)
    bridge = TransformerBridge.boot_transformers(
        "a model", hf_model=make_hf(kind), tokenizer=loaded.tokenizer, device="cpu", dtype=torch.float32
    )
    bridge.eval()
    batch = rl.encode(bridge, PROMPTS, padding_side="left")
    settings = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    wanted = hf.generate(batch.tokens, attention_mask=batch.attention_mask, generation_config=settings)
    mend_attention(bridge)
    found = bridge.original_model.generate(
        batch.tokens, attention_mask=batch.attention_mask, generation_config=settings
    )
    assert torch.equal(found, wanted)


def test_the_name_is_the_one_in_the_models_signature() -> None:
    bridge = make_bridge("gpt2")
    name = cache_name(type(bridge.original_model))
    assert name in inspect.signature(type(bridge.original_model).forward).parameters
    cache = DynamicCache()
    assert cache_in(with_cache(bridge, cache)) is cache
    assert cache_in({"attention_mask": None}) is None

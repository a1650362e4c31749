"""Loading, freezing, hook names, and the hooks where a write would be lost."""

from __future__ import annotations

import pytest
import torch
from conftest import ARCHITECTURES, PROMPTS, make_bridge, make_hf, make_tokenizer

import reftlens as rl
from reftlens.bridge import canonical_hook, fingerprint, layer_of


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Models as a user has them: directories written by `save_pretrained`."""
    root = tmp_path_factory.mktemp("models")
    for architecture in ARCHITECTURES:
        for dtype in (torch.float32, torch.bfloat16):
            directory = root / f"{architecture}-{dtype}".replace("torch.", "")
            make_hf(architecture, dtype=dtype).save_pretrained(directory)
            make_tokenizer().save_pretrained(directory)
    return root


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_local_directory_loads_frozen_in_eval_mode_and_in_its_own_dtype(saved, architecture, dtype) -> None:
    bridge = rl.load_bridge(str(saved / f"{architecture}-{dtype}"))
    assert not bridge.training
    assert not any(parameter.requires_grad for parameter in bridge.parameters())
    assert {str(p.dtype) for p in bridge.original_model.parameters()} == {f"torch.{dtype}"}
    batch = rl.encode(bridge, PROMPTS)
    plain = make_hf(architecture, dtype=getattr(torch, dtype))
    theirs = plain(batch.tokens, attention_mask=batch.attention_mask).logits.detach()
    real, tolerance = batch.prompt_mask, 1e-5 if dtype == "float32" else 5e-2
    torch.testing.assert_close(bridge(batch.tokens)[real], theirs[real], rtol=tolerance, atol=tolerance)


def test_a_directory_can_be_loaded_in_another_dtype(saved) -> None:
    bridge = rl.load_bridge(saved / "gpt2-bfloat16", dtype=torch.float32)
    assert {p.dtype for p in bridge.original_model.parameters()} == {torch.float32}


def test_the_embedded_organism_loads_by_name() -> None:
    bridge = rl.load_bridge("facts-small")
    assert rl.encode(bridge, ["Anything at all, even 日本語 <b>$x$"]).tokens.shape[1] > 5


def test_unknown_names_say_what_there_is(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no-such-model.*facts-small.*no such directory"):
        rl.load_bridge("no-such-model")
    with pytest.raises(ValueError, match="could not be read as a model"):
        rl.load_bridge(tmp_path)


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="either a name or hf_model"):
        rl.load_bridge()
    with pytest.raises(ValueError, match="either a name or hf_model"):
        rl.load_bridge("gpt2", hf_model=make_hf("gpt2"))
    with pytest.raises(ValueError, match="tokenizer"):
        rl.load_bridge(hf_model=make_hf("gpt2"))


def test_one_model_cannot_belong_to_two_bridges() -> None:
    hf = make_hf("gpt2")
    rl.load_bridge(hf_model=hf, tokenizer=make_tokenizer())
    with pytest.raises(ValueError, match="already belongs to a bridge"):
        rl.load_bridge(hf_model=hf, tokenizer=make_tokenizer())


def test_aliases_have_one_canonical_name(bridge) -> None:
    assert canonical_hook(bridge, "blocks.1.hook_resid_post") == canonical_hook(bridge, "blocks.1.hook_out")
    assert [layer_of(name) for name in ("blocks.11.hook_out", "hook_embed")] == [11, None]


@pytest.mark.parametrize(
    ("hook_name", "message"),
    [
        ("blocks.1.hook_resid_pots", r"nearest are .*blocks\.1\.hook_resid_post"),
        ("blocks.9.hook_resid_post", r"3 layers, blocks\.0 to blocks\.2"),
        ("embed.hook_in", "token ids"),
        ("blocks.0.attn.hook_pattern", "position, not a direction"),
        ("blocks.0.attn.hook_result", "set_use_attn_result"),
    ],
)
def test_hooks_that_cannot_be_edited_are_refused_with_the_reason(gpt2, hook_name, message) -> None:
    with pytest.raises(ValueError, match=message):
        canonical_hook(gpt2, hook_name)


def test_fused_qkv_never_fires_and_is_refused(gpt2) -> None:
    with pytest.raises(ValueError, match="never fires"):
        canonical_hook(gpt2, "blocks.0.attn.qkv.hook_out")


def test_fingerprint_tells_models_apart_and_survives_a_copy() -> None:
    one, same, other = make_bridge("gpt2"), make_bridge("gpt2"), make_bridge("gpt2", seed=1)
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert fingerprint(make_bridge("llama")) != fingerprint(one)

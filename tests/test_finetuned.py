"""Finetuned models beside their base: adapters from disk by their formulas, checkpoints, and models in memory."""

from __future__ import annotations

import json
import re
import warnings

import pytest
import torch
from architectures import make_hf
from conftest import make_bridge, make_tokenizer
from safetensors.torch import load_file, save_file
from torch import nn

import reftlens as rl
from reftlens.bridge import fingerprint, load_finetuned

peft = pytest.importorskip("peft")

MATRICES = {
    "gpt2": ["c_attn", "c_proj"],
    "llama": ["q_proj", "o_proj", "down_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
}
TOKENS = torch.arange(12).reshape(2, 6) + 5
# peft 0.21 asks transformers 5.23 by an old name, and says what it does with GPT-2's Conv1D.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]


def adapted(architecture: str, **settings) -> nn.Module:
    """A model with an adapter, none of whose weights is at its start."""
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=MATRICES[architecture], **settings)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = peft.get_peft_model(make_hf(architecture), config)
        for name, value in model.named_parameters():
            if "lora_" in name or value.requires_grad:
                value.data += 0.2 * torch.randn_like(value)
    return model.eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    found = model(TOKENS, attention_mask=torch.ones_like(TOKENS))
    return found if isinstance(found, torch.Tensor) else found.logits


def by_formula(weights: dict[str, torch.Tensor], name: str, base: torch.Tensor, scale: float) -> torch.Tensor:
    """W + s B A, and for DoRA that with its rows (outputs) scaled to the magnitudes m; all as [out, in]."""
    A, B = (weights[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    W = base + scale * B @ A
    m = weights.get(f"base_model.model.{name}.lora_magnitude_vector")
    return W if m is None else m[:, None] * W / W.norm(dim=1, keepdim=True)


CASES = [
    ("gpt2", {}, 5 / 3),
    pytest.param("gpt2", {"use_dora": True}, 5 / 3, marks=pytest.mark.slow),
    ("llama", {"use_dora": True}, 5 / 3),
    pytest.param(
        "llama", {"rank_pattern": {"o_proj": 2}, "alpha_pattern": {"o_proj": 4}}, None, marks=pytest.mark.slow
    ),
    ("gpt_neox", {"use_rslora": True, "bias": "lora_only"}, 5 / 3**0.5),
]


@pytest.mark.parametrize(("architecture", "settings", "scale"), CASES)
def test_an_adapter_from_disk_is_that_of_peft_and_of_the_formula(architecture, settings, scale, tmp_path) -> None:
    model = adapted(architecture, **settings)
    model.save_pretrained(tmp_path)
    bridge = make_bridge(architecture)
    before = fingerprint(bridge)
    found = load_finetuned(bridge, tmp_path)
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(found), logits(bridge), atol=1e-2)
    assert fingerprint(bridge) == before
    stored, own = load_file(tmp_path / "adapter_model.safetensors"), dict(make_hf(architecture).named_parameters())
    merged = {k.replace("._original_component", ""): v for k, v in found.original_model.state_dict().items()}
    names = [key.split(".lora_A")[0].removeprefix("base_model.model.") for key in stored if "lora_A" in key]
    assert len(names) == (9 if architecture == "gpt2" else 3 * len(MATRICES[architecture])), "c_proj is two matrices"
    for name in names:
        fused = architecture == "gpt2"  # its Conv1D stores [in, out]
        base = own[f"{name}.weight"].T if fused else own[f"{name}.weight"]
        s = {2: 4 / 2, 3: 5 / 3}[len(stored[f"base_model.model.{name}.lora_A.weight"])] if scale is None else scale
        expected = by_formula(stored, name, base, s)
        there = merged[f"{name}.weight"]
        torch.testing.assert_close(there, expected.T if fused else expected, rtol=1e-4, atol=1e-5)


def test_a_model_in_memory_is_copied_and_a_bridge_is_used_as_it_is(gpt2, tmp_path) -> None:
    model = adapted("gpt2")
    expected, names = logits(model), [name for name, _ in model.named_parameters()]
    found = load_finetuned(gpt2, model)
    torch.testing.assert_close(logits(found), expected, rtol=1e-4, atol=1e-4)
    assert [name for name, _ in model.named_parameters()] == names, "its adapter is still there"
    assert load_finetuned(gpt2, found) is found
    # A whole model's folder, of other weights.
    make_hf("gpt2", seed=3).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    torch.testing.assert_close(logits(load_finetuned(gpt2, tmp_path)), logits(make_hf("gpt2", seed=3)))


def test_what_does_not_fit_is_refused(gpt2, tmp_path) -> None:
    with pytest.raises(
        ValueError, match=r"must have the form of its base: the base is a GPT2LMHeadModel.*LlamaForCausalLM"
    ):
        load_finetuned(gpt2, make_bridge("llama"))
    other = make_bridge("gpt2", seed=1)
    assert load_finetuned(gpt2, other) is other
    other.enable_compatibility_mode()
    with pytest.raises(ValueError, match="one of the base and the finetuned model is in compatibility mode"):
        load_finetuned(gpt2, other)
    adapted("llama").save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match=r"cannot be put on GPT2LMHeadModel: .*not found in the base model"):
        load_finetuned(gpt2, tmp_path / "llama")
    adapted("gpt2").save_pretrained(tmp_path / "own")
    weights = tmp_path / "own" / "adapter_model.safetensors"
    stored = load_file(weights)
    (first, value), *others = stored.items()
    save_file(dict(others), weights)
    with pytest.raises(ValueError, match=rf"only one of them has {first}"):
        load_finetuned(gpt2, tmp_path / "own")
    save_file({**stored, "base_model.model.transformer.h.9.lora_A.weight": value.clone()}, weights)
    with pytest.raises(ValueError, match=r"only one of them has base_model\.model\.transformer\.h\.9"):
        load_finetuned(gpt2, tmp_path / "own")
    save_file({**stored, first: torch.ones(1, 1)}, weights)
    with pytest.raises(ValueError, match=r"cannot be put on GPT2LMHeadModel: .*size mismatch|cannot be put on"):
        load_finetuned(gpt2, tmp_path / "own")
    weights.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"cannot be put on GPT2LMHeadModel"):
        load_finetuned(gpt2, tmp_path / "own")
    weights.unlink()
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors: save the adapter with save_pretrained"):
        load_finetuned(gpt2, tmp_path / "own")


def test_an_adapter_that_is_no_change_of_weights_is_refused(gpt2, tmp_path) -> None:
    settings = peft.PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(make_hf("gpt2"), settings).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be (put on|merged)"):
        load_finetuned(gpt2, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "NOTHING"}))
    with pytest.raises(ValueError, match="cannot be put on"):
        load_finetuned(gpt2, tmp_path)


def test_a_base_whose_weights_have_changed_is_refused(tmp_path) -> None:
    adapted("gpt_neox").save_pretrained(tmp_path)
    bridge = make_bridge("gpt_neox")
    with torch.no_grad():
        # A part of a fused matrix, which the bridge keeps beside its parts.
        bridge.blocks[0].attn.q.original_component.weight.mul_(2)
    with pytest.raises(ValueError, match="the weights of this bridge are no longer those of GPTNeoXForCausalLM"):
        load_finetuned(bridge, tmp_path)


@pytest.mark.parametrize(
    "architecture", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "gpt_neox"))]
)
def test_a_random_finetune_has_the_norm_and_the_singular_values_and_goes_away(architecture) -> None:
    bridge = make_bridge(architecture)
    finetuned = load_finetuned(bridge, adapted(architecture))
    kept = bridge.original_model.state_dict().keys()  # without fused matrices that are not used
    base, own = (
        {name: value for name, value in model.original_model.named_parameters() if name in kept}
        for model in (bridge, finetuned)
    )
    changes = {name: (own[name] - base[name]).detach().clone() for name in own}
    before = fingerprint(finetuned)
    with rl.analysis.random_finetune(bridge, finetuned, seed=0) as norm:
        others = {name: (own[name] - base[name]).detach() for name in own}
        assert norm == pytest.approx(sum(float(change.square().sum()) for change in changes.values()) ** 0.5, rel=1e-4)
        for name, change in changes.items():
            assert float(others[name].norm()) == pytest.approx(float(change.norm()), rel=1e-3)
            if change.ndim == 2 and float(change.norm()):
                torch.testing.assert_close(*map(torch.linalg.svdvals, (others[name], change)), rtol=1e-3, atol=1e-4)
                cosine = float((others[name] * change).sum()) / float(change.square().sum())
                assert abs(cosine) < 0.3, "its directions are other ones"
    assert fingerprint(finetuned) == before
    with (
        pytest.raises(ValueError, match="there is no change to explain"),
        rl.analysis.random_finetune(bridge, make_bridge(architecture), seed=0),
    ):
        pass


def test_a_merge_that_would_change_the_outputs_is_refused(gpt2, tmp_path) -> None:
    """GPT-2's output layer shares the embedding's weight; merged there, an adapter of the embedding would reach it too."""
    settings = peft.LoraConfig(r=3, target_modules=["wte"], init_lora_weights=False)
    with warnings.catch_warnings(action="ignore"):
        model = peft.get_peft_model(make_hf("gpt2"), settings)
    with pytest.raises(ValueError, match=r"cannot be merged .*shares its weight with the output layer"):
        load_finetuned(gpt2, model)
    inside = make_hf("gpt2")
    with warnings.catch_warnings(action="ignore"):
        inside.add_adapter(peft.LoraConfig(r=3, target_modules=["c_attn"], init_lora_weights=False))
    # Its bridge would have the base's outputs: splitting c_attn leaves the adapter behind.
    with pytest.raises(ValueError, match=r"has an adapter of peft inside, at transformer\.h\.0\.attn\.c_attn"):
        load_finetuned(gpt2, inside)
    settings = peft.LoraConfig(r=3, target_modules=["q_proj"], lora_bias=True)
    with warnings.catch_warnings(action="ignore"):
        biased = peft.get_peft_model(make_hf("llama"), settings)
    with pytest.raises(ValueError, match=r"cannot be merged into weights: .*lora_bias"):
        load_finetuned(make_bridge("llama"), biased)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
def test_an_output_layer_that_the_base_shares_with_its_embedding_is_a_change_like_others(gpt2, tmp_path) -> None:
    model = adapted("gpt2", modules_to_save=["lm_head"])
    expected = logits(model)
    model.save_pretrained(tmp_path)
    found = load_finetuned(gpt2, tmp_path)
    torch.testing.assert_close(logits(found), expected, rtol=1e-4, atol=1e-4)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    head = weights["base_model.model.lm_head.weight"] - make_hf("gpt2").lm_head.weight
    embedding = gpt2.original_model.get_input_embeddings().weight.detach().clone()
    with torch.no_grad(), rl.analysis.random_finetune(gpt2, found, seed=0):
        other = found.original_model.get_output_embeddings().weight - embedding
        assert float(other.norm()) == pytest.approx(float(head.norm()), rel=1e-4)
        assert torch.equal(found.original_model.get_input_embeddings().weight, embedding), "which was not finetuned"
        assert not torch.allclose(logits(found), expected, atol=1e-2)
    torch.testing.assert_close(logits(found), expected, rtol=1e-4, atol=1e-4)


def test_a_finetune_with_another_tokenizer_is_refused(gpt2, tmp_path) -> None:
    """Of the same size, so that nothing else tells: two words have changed places."""
    make_hf("gpt2", seed=3).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    whole = json.loads(file.read_text())
    words = whole["model"]["vocab"]
    first, second = sorted(words, key=words.get)[40:42]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(whole))
    message = f"2 ids stand for different tokens, such as {words[second]} for {first!r} in the base and {second!r} in"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_finetuned(gpt2, tmp_path)
    # Names of added tokens may differ.
    for token in whole["added_tokens"]:
        token["content"] += "!"
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(whole))
    assert load_finetuned(gpt2, tmp_path).cfg.d_vocab == gpt2.cfg.d_vocab


def test_an_adapter_of_another_model_of_the_same_size_is_named(gpt2, tmp_path, monkeypatch) -> None:
    adapted("gpt2").save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    monkeypatch.setattr(gpt2.cfg, "model_name", "openai-community/gpt2")

    def named(name: str, from_hub: bool = True) -> list[str]:
        file.write_text(json.dumps({**config, "base_model_name_or_path": name}))
        monkeypatch.setattr("reftlens.bridge.finetuned.revision", lambda bridge: "0a1b" if from_hub else None)
        with warnings.catch_warnings(record=True, action="always") as said:
            load_finetuned(gpt2, tmp_path)
        return [str(one.message) for one in said if "was trained on" in str(one.message)]

    (message,) = named("someone/gpt2-poems")
    assert "was trained on someone/gpt2-poems, and the base is openai-community/gpt2" in message
    assert named("gpt2") == named("/scratch/run/checkpoint-500") == named("someone/gpt2-poems", from_hub=False) == []

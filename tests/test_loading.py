"""What `load_bridge` takes, what it refuses, and that loading neither installs nor makes up anything."""

from __future__ import annotations

import copy
import subprocess

import pytest
import torch
from architectures import make_config, make_hf
from conftest import PROMPTS, make_tokenizer
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertForSequenceClassification,
    BertModel,
    CLIPVisionConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.utils.quantization_config import QuantizationMethod

import reftlens as rl
from reftlens.cone.store import InMemory
from reftlens.paper.runs.config import RunConfig
from reftlens.paper.runs.folder import load_base
from reftlens.training.base_runs import BaseRuns
from reftlens.training.loss import EditLoss
from reftlens.training.objectives import Completion


def logits_of(model, batch):
    with torch.no_grad():
        found = model(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
    return (found if isinstance(found, torch.Tensor) else found.logits)[batch.attention_mask.bool()]


def saved(model, folder):
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "architecture", "missing"),
    [
        (BertModel, "bert", r"lacks weights of BertForMaskedLM: cls\.predictions\.bias"),
        (BertForSequenceClassification, "bert", r"\(BertForSequenceClassification\) lacks weights of BertForMaskedLM"),
        (LlamaModel, "llama", r"lacks weights of LlamaForCausalLM: lm_head\.weight\."),
        (LlamaForSequenceClassification, "llama", r"lacks weights of LlamaForCausalLM: lm_head\.weight\."),
    ],
)
def test_a_checkpoint_without_the_head_is_refused_unless_a_fresh_one_is_asked_for(
    kind, architecture, missing, tmp_path, caplog
) -> None:
    model = kind(make_config(architecture)).eval()
    saved(model, tmp_path)
    with pytest.raises(ValueError, match=missing + ".*pass fresh_head=True"):
        rl.load_bridge(tmp_path)
    bridge = rl.load_bridge(tmp_path, fresh_head=True)
    assert "these weights are random, because fresh_head=True" in caplog.text
    theirs = dict(model.base_model.named_parameters())
    embedding = next(name for name in theirs if "word_embeddings" in name or "embed_tokens" in name)
    assert torch.equal(bridge.embed.weight, theirs[embedding]), "the rest is the checkpoint's"


def test_a_checkpoint_with_a_tied_head_lacks_nothing(tmp_path) -> None:
    model = make_hf("gpt2")
    bridge = rl.load_bridge(saved(model, tmp_path))
    batch = rl.encode(bridge, PROMPTS)
    torch.testing.assert_close(logits_of(bridge, batch), logits_of(model, batch), rtol=1e-5, atol=1e-5)


@pytest.fixture
def processes(monkeypatch) -> list[object]:
    """What was started; nothing is."""
    started: list[object] = []

    def refuse(*command, **_kwargs):
        started.append(command)
        raise RuntimeError("no process may be started")

    for name in ("check_call", "run", "call", "check_output", "Popen"):
        monkeypatch.setattr(subprocess, name, refuse)
    return started


def make_llava() -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlavaConfig(text_config=make_config("llama"), vision_config=vision, image_token_index=319)
        return LlavaForConditionalGeneration._from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize("from_folder", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_multimodal_model_loads_without_installing_anything(processes, from_folder, tmp_path) -> None:
    model = make_llava()
    plain = copy.deepcopy(model)
    if from_folder:
        bridge = rl.load_bridge(saved(model, tmp_path))
    else:
        bridge = rl.load_bridge(hf_model=model, tokenizer=make_tokenizer())
    assert processes == []
    batch = rl.encode(bridge, PROMPTS)
    assert torch.equal(logits_of(bridge, batch), logits_of(plain, batch))
    reft = rl.Reft.at_layers(bridge, layers=[1], positions="l1", intervention=rl.LoReFT, rank=2)
    log = rl.train(bridge, reft, [(PROMPTS[0], " Ostra")], rl.TrainConfig(epochs=3, lr=1e-2, progress=False))
    assert log.loss[-1] < log.loss[0]


@pytest.mark.parametrize("position", [None, "rope"])
def test_a_part_that_a_config_leaves_out_is_not_put_in(position) -> None:
    """Granite 4 has rotary embeddings or none, and TransformerLens gives it some in any case."""
    config = AutoConfig.for_model(
        "granitemoehybrid", num_hidden_layers=3, hidden_size=32, intermediate_size=48, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["mamba", "attention", "mamba"], mamba_n_heads=4, mamba_d_head=16,
        mamba_n_groups=1, mamba_d_state=8, mamba_expand=2, num_local_experts=4, num_experts_per_tok=2,
        shared_intermediate_size=24, position_embedding_type=position, vocab_size=320, pad_token_id=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    plain = copy.deepcopy(model)
    bridge = rl.load_bridge(hf_model=model, tokenizer=make_tokenizer())
    assert (bridge.cfg.positional_embedding_type == "rotary") == (position == "rope")
    batch = rl.encode(bridge, PROMPTS)
    assert torch.allclose(logits_of(bridge, batch), logits_of(plain, batch), rtol=1e-5, atol=1e-6)
    reft = rl.Reft.at_layers(bridge, layers=[1], positions="l1", intervention=rl.LoReFT, rank=2)
    log = rl.train(bridge, reft, [(PROMPTS[0], " x")], rl.TrainConfig(epochs=2, progress=False))
    assert log.loss[1] < log.loss[0]


def test_a_model_on_which_transformer_lens_trips_is_refused_in_words() -> None:
    config = AutoConfig.for_model(
        "bart", d_model=32, vocab_size=320, **{f"{part}_{size}": n for part in ("encoder", "decoder")
        for size, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))},
    )  # fmt: skip
    decoder = AutoModelForCausalLM.from_config(config)
    with pytest.raises(
        ValueError, match=r"TransformerLens 4\.\S+ does not support BartForCausalLM of transformers 5\."
    ):
        rl.load_bridge(hf_model=decoder, tokenizer=make_tokenizer())


def test_no_code_of_a_checkpoint_is_run_or_asked_about(tmp_path, monkeypatch) -> None:
    folder = saved(make_hf("gpt2"), tmp_path)
    (folder / "code.py").write_text("raise RuntimeError('the code of a checkpoint was run')")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"model_type": "gpt2"', '"model_type": "custom"'))
    config.write_text(config.read_text().replace("{", '{"auto_map": {"AutoConfig": "code.Config"},', 1))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(ValueError, match="cannot load the model"):
        rl.load_bridge(folder)


def test_a_run_takes_the_names_of_dtypes_that_a_bridge_takes() -> None:
    assert load_base(RunConfig(model="facts-small", dtype="bf16")).cfg.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["bf16", "bfloat16", "torch.bfloat16"])
def test_a_dtype_may_be_named(name) -> None:
    bridge = rl.load_bridge(hf_model=make_hf("gpt2"), tokenizer=make_tokenizer(), dtype=name)
    assert bridge.cfg.dtype == bridge.original_model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "bf17"}, r"dtype must be one of auto, bf16, .* got 'bf17'"),
        ({"dtype": torch.int8}, "dtype must be one of"),
        ({"device": "cuda:99"}, r"device='cuda:99' cannot be used here: .*This machine has cpu"),
        ({"device": "abacus"}, "device='abacus' cannot be used here"),
    ],
)
def test_a_dtype_or_device_that_does_not_exist_is_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        rl.load_bridge("facts-small", **arguments)


def quantised(model):
    """As transformers marks a model that bitsandbytes has quantised: its own `.to` refuses a dtype then."""
    model.quantization_method = QuantizationMethod.BITS_AND_BYTES
    model.is_loaded_in_8bit = True
    with pytest.raises(ValueError, match="bitsandbytes"):
        model.to(device="cpu", dtype=torch.float32)
    return model


def test_a_quantised_model_stays_as_it_is() -> None:
    bridge = rl.load_bridge(hf_model=quantised(make_hf("llama")), tokenizer=make_tokenizer())
    batch = rl.encode(bridge, PROMPTS)
    assert torch.equal(logits_of(bridge, batch), logits_of(make_hf("llama"), batch))
    with pytest.raises(ValueError, match="quantised, so its dtype cannot be changed"):
        rl.load_bridge(hf_model=quantised(make_hf("llama")), tokenizer=make_tokenizer(), dtype="bf16")


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_in_four_or_eight_bits_equals_plain_hugging_face(bits, tmp_path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    saved(make_hf("llama"), tmp_path)
    settings = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings) for _ in range(2))
    bridge = rl.load_bridge(hf_model=ours, tokenizer=make_tokenizer())
    batch = rl.encode(bridge, PROMPTS)
    torch.testing.assert_close(logits_of(bridge, batch), logits_of(theirs, batch), rtol=1e-5, atol=1e-5)


def adapted(peft_type: str):
    peft = pytest.importorskip("peft")
    if peft_type == "prompt":
        return peft.get_peft_model(make_hf("llama"), peft.PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=2))
    model = peft.get_peft_model(make_hf("llama"), peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(len(name)))
    return model.eval()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_of_peft_is_merged_and_the_log_says_so(caplog) -> None:
    model = adapted("lora")
    bridge = rl.load_bridge(hf_model=model, tokenizer=make_tokenizer())
    assert "uses its base, LlamaForCausalLM, with the active adapter merged" in caplog.text
    batch = rl.encode(bridge, PROMPTS)
    ours, theirs = logits_of(bridge, batch), logits_of(adapted("lora"), batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, logits_of(make_hf("llama"), batch), atol=0.1), "an adapter that does nothing"
    assert not any(parameter.requires_grad for parameter in bridge.parameters())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_what_cannot_be_taken_is_refused_with_what_to_pass() -> None:
    compiled, in_place = torch.compile(make_hf("gpt2"), backend="eager"), make_hf("gpt2")
    in_place.compile(backend="eager")
    for model, kind, message in (
        (compiled, ValueError, r"compiled by torch\.compile.*compiled\._orig_mod"),
        (in_place, ValueError, r"compiled by torch\.compile"),
        (adapted("prompt"), ValueError, r"PeftModelForCausalLM.* cannot be merged.*pass hf_model\.get_base_model\(\)"),
        (torch.nn.Linear(2, 2), TypeError, "must be a model of transformers, got Linear"),
    ):
        with pytest.raises(kind, match=message):
            rl.load_bridge(hf_model=model, tokenizer=make_tokenizer())
    rl.load_bridge(hf_model=compiled._orig_mod, tokenizer=make_tokenizer())


def unfrozen(how: str) -> TransformerBridge:
    if how == "booted by TransformerLens":
        model = make_hf("gpt2")
        model.config.architectures = [type(model).__name__]
        tokenizer = make_tokenizer()
        tokenizer.init_kwargs |= {"name_or_path": "", "add_bos_token": True}
        return TransformerBridge.boot_transformers("any", hf_model=model, tokenizer=tokenizer, device="cpu").eval()
    bridge = rl.load_bridge(hf_model=make_hf("gpt2"), tokenizer=make_tokenizer())
    if how == "in compatibility mode":
        bridge.enable_compatibility_mode()
    else:
        bridge.blocks[1].mlp.original_component.c_fc.bias.requires_grad_(True)
    return bridge


@pytest.mark.parametrize(
    "how", ["in compatibility mode", "one tensor", pytest.param("booted by TransformerLens", marks=pytest.mark.slow)]
)
def test_a_base_that_is_not_frozen_is_not_trained_unasked(how) -> None:
    bridge = unfrozen(how)
    examples, config = [(PROMPTS[0], " Ostra")] * 2, rl.TrainConfig(epochs=1, progress=False)
    reft = rl.Reft.at_layers(bridge, layers=[1], positions="l1", intervention=rl.LoReFT, rank=2)
    before = {name: value.clone() for name, value in bridge.original_model.state_dict().items()}
    refused = pytest.raises(ValueError, match=r"the base is not frozen.*requires_grad_\(False\).*train_base=True")
    with refused:
        rl.train(bridge, reft, examples, config)
    with refused:
        rl.train_seeds(bridge, reft, examples, config, seeds=[0])
    with refused:
        rl.train(bridge, None, examples, config)
    runs = BaseRuns(bridge, reft, Completion(), examples, store=InMemory(0))
    with refused:
        EditLoss(runs, dropout=0.0, l1=0.0)
    after = bridge.original_model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    if how == "one tensor":
        rl.train(bridge, reft, examples, config, train_base=True)
        moved = [name for name in before if not torch.equal(before[name], after[name])]
        assert len(moved) >= 1
        assert all("c_fc.bias" in name or "mlp" in name for name in moved)
    bridge.requires_grad_(False)
    rl.train(bridge, reft, examples, config)

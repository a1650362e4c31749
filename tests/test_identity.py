"""Telling bases apart: every value counts, what is attached counts, and nothing that is held or saved crosses over."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from architectures import make_hf
from conftest import COMPLETIONS, PROMPTS, make_bridge, make_tokenizer, reseal
from tokenizers import pre_tokenizers

import reftlens as rl
from reftlens.bridge import base_identity, computation, fingerprint, foreign_hooks, identity, sampled_fingerprint
from reftlens.bridge.identity import tensor_sums
from reftlens.edit.checkpoint import stamp

EXAMPLES = list(zip(PROMPTS, COMPLETIONS, strict=True))
POST = "blocks.1.hook_resid_post"


def fresh(bridge):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return rl.Reft.at_layers(bridge, layers=[1], positions="l1", rank=2)


def losses(bridge, **settings):
    return rl.train(bridge, fresh(bridge), EXAMPLES, rl.TrainConfig(epochs=1, progress=False, **settings)).loss


def unsampled(bridge):
    """A value of the token embedding that 64 evenly spread ones leave out."""
    weight = bridge.original_model.get_input_embeddings().weight
    looked_at = set(torch.linspace(0, weight.numel() - 1, 64, dtype=torch.float64).long().tolist())
    place = next(i for i in range(weight.numel() // 2, weight.numel()) if i not in looked_at)
    return weight.data.view(-1), place


# Sums.


@pytest.mark.parametrize("shape", [(), (1,), (7, 5), (identity._BLOCK + 3,), (3, identity._BLOCK)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64], ids=str)
def test_sums_are_those_of_whole_numbers(shape, dtype) -> None:
    """Against NumPy's unsigned numbers and SplitMix64 written out in Python's."""
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(9).to(dtype)
    data = (
        tensor.contiguous().view(torch.uint8).numpy().tobytes()
        if tensor.ndim
        else tensor[None].view(torch.uint8).numpy().tobytes()
    )
    words = np.frombuffer(data + bytes(-len(data) % 4), dtype=np.int32).astype(np.int64).astype(np.uint64)
    factors = identity._factors(torch.device("cpu")).numpy().astype(np.uint64)
    for place in (0, 1, 77, identity._BLOCK - 1):
        z = (place + 1) * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        assert int(factors[place]) == z ^ z >> 31 | 1
    blocks = [words[at : at + identity._BLOCK] for at in range(0, len(words), identity._BLOCK)]
    wanted = [int((block * factors[: len(block)]).sum(dtype=np.uint64)) for block in blocks]
    assert np.frombuffer(tensor_sums(tensor), dtype=np.uint64).tolist() == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_change_of_a_tensor_moves_its_sums(dtype) -> None:
    random = torch.Generator().manual_seed(0)
    tensor = torch.randn(300, 20, generator=random).to(dtype)
    before = tensor_sums(tensor)

    def moved(other) -> bool:
        assert not torch.equal(other.view(torch.int16), tensor.view(torch.int16)), "nothing was changed"
        return tensor_sums(other) != before

    bits = torch.int32 if dtype is torch.float32 else torch.int16
    for row in range(300):
        column, bit, shift = (int(torch.randint(size, (), generator=random)) for size in (20, 15, 299))
        other = (row + 1 + shift) % 300
        flipped, negated, swapped = (tensor.clone() for _ in range(3))
        flipped.view(bits)[row, column] ^= 1 << bit
        negated[row] = -negated[row]
        swapped[[row, other]] = tensor[[other, row]]
        assert moved(flipped)
        assert moved(negated)
        assert moved(swapped)
    assert moved(-tensor)
    assert moved(tensor.flip(0))
    assert moved(tensor.flip(1))


# Models.


@pytest.mark.parametrize(
    "architecture", ["gpt_neox", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "gemma2", "bert"))]
)
def test_any_value_of_a_base_moves_its_fingerprint(architecture) -> None:
    bridge = make_bridge(architecture)
    before, exact = fingerprint(bridge), base_identity(bridge)
    random = np.random.default_rng(0)
    model = bridge.original_model
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        place = tuple(int(random.integers(size)) for size in tensor.shape)
        old = tensor.data[place].clone()
        # What is not saved is made anew on each machine, and compared to three digits.
        step = old + 1 if not old.is_floating_point() else torch.nextafter(old, old + 1)
        step = step if isinstance(tensor, torch.nn.Parameter) or not old.is_floating_point() else old * 1.01 + 0.01
        tensor.data[place] = step
        assert fingerprint(bridge) != before, name
        if name.endswith(("inv_freq", "layers.1.mlp.dense_4h_to_h.bias")):
            assert base_identity(bridge) != exact, name
        tensor.data[place] = old
    assert (fingerprint(bridge), base_identity(bridge)) == (before, exact)


def test_each_weight_is_read_once(gpt2, monkeypatch) -> None:
    """The cost: one pass over the memory of the model, its second names left out, a fused matrix beside its parts not."""
    read = []
    monkeypatch.setattr(identity, "_words", lambda t, words=identity._words: read.append(t.numel()) or words(t))
    fingerprint(gpt2)
    saved = gpt2.original_model.state_dict()
    assert sum(t.numel() for t in saved.values()) > 2 * sum(read), "the second names hold as much again"
    assert sum(read) < 1.25 * sum({id(p): p.numel() for p in gpt2.original_model.parameters()}.values())


def test_use_leaves_the_identity_as_it_is(gpt2) -> None:
    before = base_identity(gpt2), fingerprint(gpt2)
    gpt2.run_with_cache(rl.encode(gpt2, PROMPTS).tokens)
    rl.generate(gpt2, fresh(gpt2), PROMPTS[:1], max_new_tokens=2)
    losses(gpt2)
    assert (base_identity(gpt2), fingerprint(gpt2)) == before
    assert foreign_hooks(gpt2) == []


def test_settings_of_modules_count(gpt2) -> None:
    before = base_identity(gpt2)
    norm = gpt2.original_model.transformer.h[0].ln_1.original_component
    norm.eps *= 2
    assert base_identity(gpt2) != before
    norm.eps /= 2
    assert base_identity(gpt2) == before


# Held runs.


def test_no_run_is_used_after_a_weight_that_was_not_sampled_has_changed(gpt2, tmp_path) -> None:
    losses(gpt2, hold_dir=tmp_path / "runs")
    fresh(gpt2).save_pretrained(tmp_path / "edit", bridge=gpt2, card=False)
    sampled = sampled_fingerprint(gpt2)
    values, place = unsampled(gpt2)
    values[place] += 1.0
    assert sampled_fingerprint(gpt2) == sampled, "the old fingerprint would have seen it too"
    with pytest.raises(ValueError, match=r"base runs of other inputs \(different: base, weights\)"):
        losses(gpt2, hold_dir=tmp_path / "runs")
    with pytest.raises(ValueError, match="differs from this model: weights: saved"):
        rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)


def test_nothing_is_held_on_disk_under_a_hook(gpt2, tmp_path, caplog) -> None:
    truth = losses(gpt2)
    gpt2.add_hook("blocks.0.hook_out", lambda resid, hook: resid * 3)
    with caplog.at_level(logging.WARNING):
        assert losses(gpt2, hold_dir=tmp_path / "runs") != truth
    assert (
        "is not used, because it stores runs of the plain base, and this model has hooks on blocks.0.hook_out"
        in caplog.text
    )
    gpt2.reset_hooks()
    assert losses(gpt2, hold_dir=tmp_path / "runs") == truth


@pytest.mark.parametrize("kind", ["a permanent hook", "torch's", "everywhere", "a forward", "an edit"])
def test_whatever_is_attached_is_found(gpt2, kind) -> None:
    gpt2.run_with_cache(torch.tensor([[3, 4, 5]]))
    assert foreign_hooks(gpt2) == [], "hooks of TransformerLens and transformers change nothing"
    block = gpt2.original_model.transformer.h[0]
    handle = None
    if kind == "a permanent hook":
        gpt2.add_hook("blocks.0.hook_out", lambda resid, hook: resid * 3, is_permanent=True)
        assert foreign_hooks(gpt2) == ["blocks.0.hook_out"]
    elif kind == "torch's":
        handle = block.mlp.register_forward_pre_hook(lambda module, args: args)
        assert foreign_hooks(gpt2) == ["transformer.h.0.mlp"]
    elif kind == "everywhere":
        handle = torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
        assert foreign_hooks(gpt2) == ["every module of torch"]
    elif kind == "a forward":
        gpt2.blocks[1].mlp.forward = lambda resid: resid
        assert foreign_hooks(gpt2) == ["transformer.h.1.mlp"]
    else:
        batch = rl.encode(gpt2, PROMPTS)
        with fresh(gpt2).hooks(gpt2, batch):
            assert "blocks.1.hook_out" in foreign_hooks(gpt2)
            gpt2(batch.tokens, attention_mask=batch.attention_mask)
        assert foreign_hooks(gpt2) == []
    if handle is not None:
        handle.remove()


def test_runs_of_another_tokenizer_with_the_same_vocabulary_are_not_used(tmp_path) -> None:
    bridge = make_bridge("gpt2")
    losses(bridge, hold_dir=tmp_path / "runs")
    before = stamp(bridge)["tokenizer"]
    bridge.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert stamp(bridge)["tokenizer"] == before
    with pytest.raises(ValueError, match=r"base runs of other inputs \(different: tokens\)"):
        losses(bridge, hold_dir=tmp_path / "runs")


# Saved edits.


def change_stamp(folder, change) -> None:
    path = folder / "reft_config.json"
    config = json.loads(path.read_text())
    change(config["base"])
    path.write_text(json.dumps(config))
    reseal(folder)


def test_an_edit_with_the_old_fingerprint_loads_and_says_so(gpt2, tmp_path, caplog) -> None:
    fresh(gpt2).save_pretrained(tmp_path / "edit", bridge=gpt2, card=False)

    def as_before(base) -> None:
        base["weights"] = sampled_fingerprint(gpt2)
        del base["computation"]

    change_stamp(tmp_path / "edit", as_before)
    with caplog.at_level(logging.WARNING):
        rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)
    assert "recorded only 64 values of each weight matrix of its base. Only these values were compared" in caplog.text
    with pytest.raises(ValueError, match="differs from this model: weights: saved"):
        rl.Reft.from_pretrained(tmp_path / "edit", bridge=make_bridge("gpt2", seed=1))


@pytest.mark.parametrize("architecture", ["roberta", "gpt2"])
def test_the_padding_token_counts_where_positions_are_counted_from_it(architecture) -> None:
    """RoBERTa's first position is the id of its padding token plus one. No other id of a special token changes a logit."""
    one, two = make_hf(architecture), make_hf(architecture)
    for model, pad in ((one, 1), (two, 2)):
        model.config.pad_token_id, model.config.sep_token_id = pad, pad + 7
    if architecture == "roberta":
        # What its constructor makes of the config.
        for model in (one, two):
            rows = model.roberta.embeddings
            rows.padding_idx = rows.position_embeddings.padding_idx = model.config.pad_token_id
    a, b = (rl.load_bridge(hf_model=model, tokenizer=make_tokenizer()) for model in (one, two))
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        same = torch.equal(a.original_model(tokens).logits, b.original_model(tokens).logits)
    assert same == (architecture == "gpt2")
    assert (computation(a) == computation(b)) == same
    assert fingerprint(a) == fingerprint(b), "the weights do not tell"
    differing = {name for name in computation(a) if computation(a)[name] != computation(b)[name]}
    assert differing == (set() if same else {"pad_token_id"})


def test_settings_of_the_config_are_compared_where_both_versions_know_them(gpt2, tmp_path) -> None:
    fresh(gpt2).save_pretrained(tmp_path / "edit", bridge=gpt2, card=False)
    assert {"layer_norm_epsilon", "activation_function", "n_head"} <= set(computation(gpt2))
    change_stamp(tmp_path / "edit", lambda base: base["computation"].update({"of a later version": 1}))
    change_stamp(tmp_path / "edit", lambda base: base["computation"].pop("n_positions"))
    rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)
    change_stamp(tmp_path / "edit", lambda base: base["computation"].update({"activation_function": "relu"}))
    with pytest.raises(ValueError, match="activation_function: saved 'relu', this model 'gelu_new'"):
        rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)
    rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2, allow_mismatch=["computation"])

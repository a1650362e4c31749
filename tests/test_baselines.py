"""Baselines: what each trains, by its formula; that it learns; that the base is put back; and what cannot be learned is not."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from architectures import D_HEAD, D_MLP, D_MODEL, N_KV_HEADS, N_LAYERS, make_hf
from conftest import PROMPTS, make_bridge
from transformers import DynamicCache

import reftlens as rl
from reftlens.bridge import n_parameters
from reftlens.paper.baselines import (
    METHODS,
    BitFit,
    EditAt,
    FullFineTuning,
    LinearProbe,
    LoRA,
    PrefixTuning,
    compare,
    completed,
    labelled,
)
from reftlens.paper.baselines.side_effect import Change
from reftlens.training.objectives import Classification, Completion

pytest.importorskip("peft")

CONFIG = rl.TrainConfig(epochs=30, batch_size=4, lr=1e-2, schedule="constant", progress=False)
EXAMPLE = (PROMPTS[0], " Ostra")
ALL = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.in", "mlp.out", "mlp.gate")
D_KV = N_KV_HEADS * D_HEAD
LLAMA = {  # inputs + outputs of each matrix
    "attn.q": 2 * D_MODEL,
    "attn.k": D_MODEL + D_KV,
    "attn.v": D_MODEL + D_KV,
    "attn.o": 2 * D_MODEL,
    "mlp.in": D_MODEL + D_MLP,
    "mlp.out": D_MODEL + D_MLP,
    "mlp.gate": D_MODEL + D_MLP,
}
OUTPUTS = 2 * D_MODEL + 2 * D_KV + 2 * D_MLP + D_MODEL


def hf_count(architecture: str) -> int:
    return sum(parameter.numel() for parameter in make_hf(architecture).parameters())


def state(bridge):
    return {name: value.clone() for name, value in bridge.original_model.state_dict().items()}


def trained(bridge, reft) -> int:
    modules = [bridge] if reft is None else [bridge, reft]
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("architecture", "method", "count"),
    [
        ("llama", EditAt(rank=3), N_LAYERS * (2 * 3 * D_MODEL + 3)),
        ("llama", EditAt(rank=3, tied=False, layers=[1]), 2 * (2 * 3 * D_MODEL + 3)),
        ("llama", EditAt(rank=3, learn_subspace=False), N_LAYERS * (3 * D_MODEL + 3)),
        ("llama", EditAt(intervention=rl.ConsReFT, rank=3), N_LAYERS * (3 * D_MODEL + 3)),
        ("llama", EditAt(intervention=rl.SteeringVector), N_LAYERS * D_MODEL),
        ("llama", LoRA(rank=3), 3 * N_LAYERS * (LLAMA["attn.q"] + LLAMA["attn.v"])),
        ("llama", LoRA(rank=3, matrices=ALL), 3 * N_LAYERS * sum(LLAMA.values())),
        ("llama", LoRA(rank=3, matrices=ALL, dora=True), N_LAYERS * (3 * sum(LLAMA.values()) + OUTPUTS)),
        ("gpt2", LoRA(rank=3, matrices=ALL[:6]), 3 * N_LAYERS * (4 * 2 * D_MODEL + 2 * 5 * D_MODEL)),
        ("llama", PrefixTuning(length=5), N_LAYERS * 2 * 5 * D_KV),
        ("gpt2", PrefixTuning(length=5), N_LAYERS * 2 * 5 * D_MODEL),
        ("gpt2", BitFit(), N_LAYERS * (2 + 3 + 1 + 4 + 1) * D_MODEL + D_MODEL),
        ("llama", FullFineTuning(), hf_count("llama")),
        ("gpt2", FullFineTuning(), hf_count("gpt2")),
        ("gpt_neox", FullFineTuning(), hf_count("gpt_neox")),
    ],
)
def test_trained_numbers_are_those_of_the_formula(architecture, method, count) -> None:
    bridge = make_bridge(architecture)
    before = state(bridge)
    with method.applied(bridge, Completion(), EXAMPLE) as reft:
        assert trained(bridge, reft) == count
    assert trained(bridge, None) == 0
    assert state(bridge).keys() == before.keys()
    assert n_parameters(bridge) == hf_count(architecture)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_a_classifier_does_not_train_what_it_does_not_read(architecture) -> None:
    """The head on the last hidden state needs no unembedding."""
    bridge = make_bridge(architecture)
    objective = Classification(bridge, 3)
    hf = make_hf(architecture)
    with FullFineTuning().applied(bridge, objective, (PROMPTS[0], 0)) as reft:
        assert trained(bridge, reft) == sum(parameter.numel() for parameter in hf.base_model.parameters())
    with LinearProbe().applied(bridge, objective, (PROMPTS[0], 0)) as reft:
        assert trained(bridge, reft) == 0
        assert sum(p.numel() for p in objective.parameters()) == 3 * D_MODEL + 3


ENDINGS = ["The old tower", "the weaver who", "by the river", "The old city of"]


QUICK = ("LoRA", "prefix tuning", "full fine-tuning")
"""What changes the base in the three ways there are; the others learn in `make test-all`."""


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name, method in METHODS.items()
        if not isinstance(method, LinearProbe)
    ],
)
def test_each_method_learns_and_the_base_is_put_back_to_the_bit(name) -> None:
    bridge = make_bridge("gpt2")
    before, tokens = state(bridge), torch.arange(12).view(2, 6)
    logits = bridge(tokens)
    pairs = [(text, " Ostra") for text in ENDINGS]
    problem = completed(bridge, pairs, pairs)
    method = METHODS[name]
    if isinstance(method, PrefixTuning):
        method = replace(method, lr=5e-2)
    elif isinstance(method, EditAt):
        # A random subspace of rank 4 does not hold the answer here.
        method = replace(method, lr=3e-2, rank=method.rank if method.learn_subspace else 16)
    config = replace(CONFIG, epochs=30 if name in QUICK else 100)
    result = compare(bridge, problem, {name: method}, config, seeds=(0,), memory=False)
    assert result.base_score == 0.0
    assert result.runs[0].score == 1.0
    assert result.steps == config.epochs
    after = state(bridge)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(bridge(tokens), logits)
    assert trained(bridge, None) == 0
    assert not bridge.training


def test_the_base_is_put_back_after_an_error_too(gpt2) -> None:
    before = state(gpt2)
    for method in METHODS.values():
        objective = Classification(gpt2, 2)
        with pytest.raises(RuntimeError, match="stop"), method.applied(gpt2, objective, (PROMPTS[0], 0)):
            with torch.no_grad():
                for parameter in gpt2.parameters():
                    if parameter.requires_grad:
                        parameter.add_(1.0)
            raise RuntimeError("stop")
        assert trained(gpt2, None) == 0
    after = state(gpt2)
    assert all(torch.equal(after[key], before[key]) for key in before)


NAMES = {
    "llama": dict(zip(ALL, ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"), strict=True)),
    "gpt2": {"attn.o": "attn.c_proj", "mlp.in": "mlp.c_fc", "mlp.out": "mlp.c_proj"},
}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("architecture", NAMES)
def test_lora_in_the_bridge_is_pefts_on_the_plain_model(architecture, dora) -> None:
    """Logits and gradients; of GPT-2 the matrices that the bridge does not split."""
    from peft import LoraConfig, inject_adapter_in_model

    bridge, names = make_bridge(architecture), NAMES[architecture]
    settings = LoraConfig(
        r=3, lora_alpha=6, use_dora=dora, target_modules=list(names.values()), fan_in_fan_out=architecture == "gpt2"
    )
    plain = inject_adapter_in_model(settings, make_hf(architecture))
    tokens = torch.arange(12).view(2, 6)
    with LoRA(rank=3, matrices=tuple(names), dora=dora).applied(bridge, Completion(), EXAMPLE):
        ours = [value for value in bridge.parameters() if value.requires_grad]
        theirs = [value for value in plain.parameters() if value.requires_grad]
        assert sum(p.numel() for p in ours) == sum(p.numel() for p in theirs)
        pairs = []
        for layer in range(N_LAYERS):
            for part, name in names.items():
                component = bridge.blocks[layer].get_submodule(part).original_component
                (match,) = [
                    m
                    for n, m in plain.named_modules()
                    if f".{layer}." in n and n.endswith(name) and hasattr(m, "lora_A")
                ]
                pairs += list(zip(component.parameters(), match.parameters(), strict=True))
        pairs = [(a, b) for a, b in pairs if a.requires_grad]
        assert len(pairs) == len(ours)
        with torch.no_grad():
            for index, (mine, other) in enumerate(pairs):
                mine.copy_(torch.rand(mine.shape, generator=torch.Generator().manual_seed(index)) * 0.3 + 0.1)
                other.copy_(mine)
        logits, expected = bridge(tokens, use_cache=False), plain(tokens, use_cache=False).logits
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        assert float((expected - make_hf(architecture)(tokens).logits).detach().abs().max()) > 0.5
        gradients = torch.autograd.grad(logits.square().mean(), [a for a, _ in pairs])
        wanted = torch.autograd.grad(expected.square().mean(), [b for _, b in pairs])
        for gradient, reference in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-4)


def test_full_fine_tuning_equals_a_hand_written_loop_on_the_plain_model() -> None:
    bridge, twin = make_bridge("llama"), make_hf("llama")
    pairs = [(PROMPTS[0], " Ostra"), (PROMPTS[1], " Tharic ."), (PROMPTS[2], " the river")]
    batch = rl.encode(bridge, *map(list, zip(*pairs, strict=True)))
    optimiser = torch.optim.AdamW(twin.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(4):
        optimiser.zero_grad()
        logits = twin(batch.tokens, attention_mask=batch.attention_mask).logits
        rl.objectives.completion_loss(logits, batch.labels).backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimiser.step()
    config = replace(CONFIG, epochs=4, lr=1e-3)
    with FullFineTuning().applied(bridge, Completion(), pairs[0]) as reft:
        log = rl.train(bridge, reft, pairs, config, train_base=True)
        ours = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
    expected = twin(batch.tokens, attention_mask=batch.attention_mask).logits
    real = batch.attention_mask.bool()
    torch.testing.assert_close(ours[real], expected[real], rtol=1e-3, atol=1e-3)
    assert log.loss[-1] < 0.9 * log.loss[0]


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_prefix_is_keys_and_values_before_the_prompt(architecture) -> None:
    """Against the plain model with a cache of its own; and decoding with a cache, without one and one by one."""
    bridge, plain = make_bridge(architecture), make_hf(architecture)
    tokens = torch.arange(3, 15).view(2, 6)
    with PrefixTuning(length=4).applied(bridge, Completion(), EXAMPLE):
        prefix = [value for value in bridge.parameters() if value.requires_grad]
        logits = bridge(tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
        cache = DynamicCache()
        for layer in range(N_LAYERS):
            cache.update(*(value.expand(2, -1, -1, -1) for value in prefix[2 * layer : 2 * layer + 2]), layer)
        expected = plain(
            tokens,
            past_key_values=cache,
            attention_mask=torch.ones(2, 10, dtype=torch.long),
            position_ids=torch.arange(6).expand(2, 6),
        ).logits
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        assert all(bool(g.any()) for g in torch.autograd.grad(logits.square().sum(), prefix))
        together = rl.generate(bridge, None, PROMPTS, max_new_tokens=5)
        assert together == rl.generate(bridge, None, PROMPTS, max_new_tokens=5, use_cache=False)
        assert together == [rl.generate(bridge, None, [prompt], max_new_tokens=5)[0] for prompt in PROMPTS]
    assert together != rl.generate(bridge, None, PROMPTS, max_new_tokens=5)


def test_a_random_subspace_stays_as_it_was_drawn(gpt2) -> None:
    with EditAt(rank=3, learn_subspace=False).applied(gpt2, Completion(), EXAMPLE) as reft:
        before = [(edit.R.clone(), edit.source.weight.detach().clone()) for _, edit in reft]
        rl.train(gpt2, reft, [EXAMPLE] * 4, replace(CONFIG, epochs=3))
        for (_, edit), (R, W) in zip(reft, before, strict=True):
            assert torch.equal(edit.R, R)
            assert not torch.equal(edit.source.weight, W)
        (_, first), *_ = reft
        assert first.R.shape == (3, D_MODEL)
    with EditAt(rank=3).applied(gpt2, Completion(), EXAMPLE) as reft:
        before = [edit.R.detach().clone() for _, edit in reft]
        rl.train(gpt2, reft, [EXAMPLE] * 4, replace(CONFIG, epochs=3))
        assert not any(torch.equal(edit.R, R) for (_, edit), R in zip(reft, before, strict=True))


def swapped_answers(bridge) -> list[tuple[str, str]]:
    """Two prompts, each to get what the base says to the other, in one token."""
    words = [
        "The",
        " old",
        " tower",
        " river",
        " city",
        " weaver",
        " speaks",
        " lives",
        " stands",
        " the",
        " of",
        " by",
    ]
    found: dict[int, str] = {}
    for first in words:
        for second in words:
            batch = rl.encode(bridge, [first + second])
            top = int(batch.at_last_prompt_token(bridge(batch.tokens)).argmax())
            text = bridge.tokenizer.decode([top])
            if bridge.tokenizer(text, add_special_tokens=False)["input_ids"] == [top]:
                found.setdefault(top, first + second)
    (a, prompt_a), (b, prompt_b), *_ = found.items()
    return [(prompt_a, bridge.tokenizer.decode([b])), (prompt_b, bridge.tokenizer.decode([a]))]


@pytest.mark.slow
def test_a_constant_edit_cannot_do_what_needs_the_input() -> None:
    """A proof, and the table that shows it.

    After the last block the logits' difference is w.(h + v) / |h + v|, w = u_a - u_b (RMSNorm, no bias). Prompt A, where it
    is positive, is to make it negative, and B the other way round; so w.v < -w.h_A < 0 and w.v > -w.h_B > 0: no v does both.
    """
    bridge = make_bridge("llama")
    pairs = swapped_answers(bridge)
    late = {"layers": [N_LAYERS - 1], "positions": "l1", "lr": 5e-2}
    methods = {
        "LoReFT": EditAt(rank=4, **late),
        "LobiReFT": EditAt(intervention=rl.LobiReFT, rank=4, **late),
        "steering vector": EditAt(intervention=rl.SteeringVector, **late),
    }
    config = replace(CONFIG, epochs=40)
    swap = compare(bridge, completed(bridge, pairs, pairs), methods, config, seeds=(0,), memory=False)
    scores = dict(zip(swap.to_dataframe()["method"], swap.to_dataframe()["score"], strict=True))
    assert swap.base_score == 0.0
    assert scores.pop("LoReFT") == 1.0
    assert max(scores.values()) <= 0.5
    same = [(prompt, pairs[0][1]) for prompt, _ in pairs]
    del methods["LoReFT"]
    constant = compare(bridge, completed(bridge, same, same), methods, config, seeds=(0,), memory=False)
    assert [run.score for run in constant.runs] == [1.0, 1.0]


WORDS = ["old", "tower", "stands", "city", "lives", "there", "speaks", "who"]
METHODS_OF_LABELS = {
    "LoRA": LoRA(rank=2),
    "probe": LinearProbe(lr=1e-1),
}


def texts_with_a_signal(n: int, seed: int) -> list[tuple[str, int]]:
    """The last word tells the label: "river" 1, "weaver" 0."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(WORDS), (n, 3), generator=generator).tolist()
    return [(" ".join(WORDS[w] for w in row) + (" river", " weaver")[i % 2], 1 - i % 2) for i, row in enumerate(draws)]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "roberta"])
def test_labels_are_learned_and_shuffled_ones_are_not(architecture) -> None:
    bridge = make_bridge(architecture)
    train, test = texts_with_a_signal(64, 0), texts_with_a_signal(40, 1)
    # Half of each kind get the wrong label: nothing that goes beyond single texts can be learned.
    shuffled = [(text, label ^ (place // 2 % 2)) for place, (text, label) in enumerate(train)]
    config = replace(CONFIG, epochs=12, batch_size=16)
    real, null = (
        compare(bridge, labelled(bridge, examples, test), METHODS_OF_LABELS, config, seeds=(0,), memory=False)
        for examples in (train, shuffled)
    )
    scores = {run.method: run.score for run in real.runs}
    assert scores["LoRA"] >= 0.95
    # The causal model's head reads the word itself; an untrained encoder's first token holds it as its attention mixes it.
    assert scores["probe"] >= 0.95 if architecture == "gpt2" else scores["probe"] > 0.75
    assert all(0.25 <= run.score <= 0.75 for run in null.runs)
    assert [run.head for run in real.runs] == [D_MODEL * D_MODEL + D_MODEL + 2 * D_MODEL + 2, 2 * D_MODEL + 2]
    assert real.base_score is None


@pytest.mark.slow
def test_runs_are_repeatable_and_the_table_says_what_was_run(gpt2) -> None:
    pairs = [(text, " Ostra") for text in ENDINGS]
    methods = {"LoReFT": EditAt(rank=2, layers=[1]), "full": FullFineTuning(lr=2e-3)}
    config = replace(CONFIG, epochs=3, batch_size=2, gradient_accumulation=2)
    one = compare(gpt2, completed(gpt2, pairs, pairs[:3]), methods, config, seeds=(0, 5))
    two = compare(gpt2, completed(gpt2, pairs, pairs[:3]), methods, config, seeds=(5,), memory=False)
    for mine, other in zip(one.runs[1::2], two.runs, strict=True):
        assert replace(mine, cpu_seconds=0.0, memory=None) == replace(other, cpu_seconds=0.0)
    assert [(run.method, run.seed, run.lr) for run in one.runs] == [
        ("LoReFT", 0, 1e-2),
        ("LoReFT", 5, 1e-2),
        ("full", 0, 2e-3),
        ("full", 5, 2e-3),
    ]
    assert one.runs[0].loss != one.runs[1].loss
    assert (one.steps, one.batch_size, one.n_train, one.n_test) == (3, 4, 4, 3)
    assert list(one.to_dataframe()["percent"]) == pytest.approx([100 * (2 * 2 * 32 + 2) / hf_count("gpt2"), 100.0])
    # Gradients and AdamW's two moments, in float32.
    assert one.runs[2].memory > 3 * 4 * hf_count("gpt2") > one.runs[0].memory
    assert "exact match on 3 examples, 3 steps of 4 on 4: LoReFT" in repr(one)
    assert f"| full | {one.to_dataframe()['score'][1]:.3f} (" in one.to_markdown()


@pytest.fixture(scope="module")
def equal():
    """Methods at a side effect of .02 nats, scored by what whole runs say that it is; and the same methods as trained."""
    bridge = make_bridge("gpt2")
    batch = rl.encode(bridge, ENDINGS)

    def said(reft):
        with torch.no_grad(), reft.hooks(bridge, batch) if reft is not None else nullcontext():
            out = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
        return batch.at_last_prompt_token(out).double().log_softmax(-1)

    base = said(None)

    def divergence(reft, objective) -> float:
        return float((base.exp() * (base - said(reft))).sum(-1).mean())

    pairs = [(text, " Ostra") for text in PROMPTS]
    problem = replace(completed(bridge, pairs, pairs), score=divergence)
    last = {"layers": [N_LAYERS - 1], "positions": "l1"}
    methods = {
        "LoReFT": EditAt(rank=2, **last),
        "LoRA": LoRA(rank=2),
        "full": FullFineTuning(lr=3e-3),
        "weak": EditAt(intervention=rl.SteeringVector, lr=1e-6, **last),
    }
    config = replace(CONFIG, epochs=3)
    control = {name: methods[name] for name in ("LoReFT", "LoRA")}
    as_trained = compare(bridge, problem, control, config, seeds=(0,), memory=False)
    return as_trained, compare(bridge, problem, methods, config, seeds=(0,), memory=False, kept=ENDINGS, kl=0.02)


def test_methods_are_scored_at_equal_side_effect(equal) -> None:
    as_trained, scaled = equal
    *runs, weak = scaled.runs
    for run in runs:
        assert run.score == pytest.approx(0.02, rel=0.04)
        assert run.score == pytest.approx(run.kl, rel=1e-3)
    # The control: as they were trained, side effects differ several times over.
    before = [run.score for run in as_trained.runs]
    assert [run.unscaled_kl for run in runs[:2]] == pytest.approx(before, rel=1e-3)
    assert max(before) > 3 * min(before)
    assert all(run.scale is None for run in as_trained.runs)
    assert "scale" not in as_trained.to_dataframe()
    # What stays below the budget is marked.
    assert (weak.scale, scaled.missed) == (8.0, ("weak",))
    assert "each scaled to a KL of 0.02 on 4 others (missed by weak)" in scaled.headline()
    assert scaled.to_markdown().count("(budget missed)") == 1
    assert as_trained.to_markdown().splitlines()[0].endswith("| MiB |")


@pytest.mark.parametrize("dora", [False, True])
def test_the_strength_of_lora_is_that_of_its_product(dora) -> None:
    bridge, tokens = make_bridge("gpt2"), torch.arange(12).view(2, 6)
    base = bridge(tokens)
    with LoRA(rank=2, dora=dora).applied(bridge, Completion(), EXAMPLE):
        layer = bridge.blocks[0].attn.q.original_component
        change = Change(LoRA(dora=dora).strength(bridge))
        with torch.no_grad():
            for value in bridge.parameters():
                if value.requires_grad:
                    value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)
        whole, trained_logits = layer.get_delta_weight("default").detach().clone(), bridge(tokens)
        for factor in (0.5, -2.0):
            change.scale(factor)
            torch.testing.assert_close(layer.get_delta_weight("default"), factor * whole)
        change.scale(0.0)
        torch.testing.assert_close(bridge(tokens), base)
        change.scale(1.0)
        assert torch.equal(bridge(tokens), trained_logits)
        assert float((trained_logits - base).detach().abs().max()) > 0.01


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (PrefixTuning(), {"kept": PROMPTS, "kl": 0.1}, "^it: PrefixTuning has no strength .*: leave this method out"),
        (LinearProbe(), {"kept": PROMPTS, "kl": 0.1}, "^it: LinearProbe has no strength"),
        (EditAt(rank=1), {"kl": 0.1}, "need both"),
        (EditAt(rank=1), {"kept": PROMPTS}, "need both"),
        (EditAt(rank=1), {"kept": PROMPTS, "kl": 0.0}, "kl must be"),
    ],
)
def test_what_cannot_be_scaled_is_refused_before_training(gpt2, method, given, message) -> None:
    with pytest.raises(ValueError, match=message):
        compare(gpt2, completed(gpt2, [EXAMPLE], [EXAMPLE]), {"first": EditAt(), "it": method}, CONFIG, **given)
    with pytest.raises(ValueError, match="a trained head"):
        compare(gpt2, labelled(gpt2, [("a", 0), ("b", 1)], [("a", 0)]), {"it": EditAt()}, CONFIG, kept=PROMPTS, kl=0.1)


@pytest.mark.parametrize(
    ("methods", "change", "message"),
    [
        ({}, {}, "at least one method"),
        (
            {"probe": LinearProbe()},
            {},
            "^probe: a linear probe needs an objective with a head, and Completion has none",
        ),
        ({"biases": BitFit()}, {}, "^biases: BitFit trains biases, and LlamaForCausalLM has none"),
        ({"lora": LoRA(matrices=("attn.qkv",))}, {}, "^lora: block 0 has no linear map 'attn.qkv'"),
        ({"red": EditAt(intervention=rl.RED, learn_subspace=False)}, {}, "^red: RED has no R"),
        ({"full": FullFineTuning()}, {"output_dir": "out"}, "for a single run"),
    ],
)
def test_what_cannot_be_compared_is_refused(methods, change, message) -> None:
    bridge = make_bridge("llama")
    with pytest.raises(ValueError, match=message):
        compare(bridge, completed(bridge, [EXAMPLE], [EXAMPLE]), methods, replace(CONFIG, **change))
    assert trained(bridge, None) == 0


def test_bases_that_do_not_fit_are_refused(gpt2) -> None:
    problem = completed(gpt2, [EXAMPLE], [EXAMPLE])
    gpt2.requires_grad_(True)
    with pytest.raises(ValueError, match="not frozen"):
        compare(gpt2, problem, METHODS, CONFIG)
    sliding = make_bridge("mistral")
    with pytest.raises(ValueError, match="sliding window"):
        PrefixTuning().applied(sliding, Completion(), EXAMPLE).__enter__()
    with pytest.raises(ValueError, match="predicts masked"):
        PrefixTuning().applied(make_bridge("bert"), Completion(), EXAMPLE).__enter__()

"""Tokens of prompt and completion against the joint text; BOS, stop tokens and labels, on every family of tokenizers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, make_hf
from conftest import make_bridge
from datasets import Dataset
from tokenizers_made import ALL, byte_bpe, sentencepiece_bpe

import reftlens as rl
from reftlens.cli.generate import prompts_in
from reftlens.data import first_tokens, str_tokens
from reftlens.data.labels import labels_of
from reftlens.data.tokens import continuations, continued_text, shortened
from reftlens.paper.runs.testing import pairs_in
from reftlens.paper.tasks.base import Record
from reftlens.paper.tasks.own import Pairs

PIECES = [
    "The tower",
    "is",
    "in",
    "side",
    "Rome",
    " ",
    "  ",
    "\n",
    ".",
    ",",
    "'s",
    "12",
    "345",
    " Oslo",
    "é",
    "日本",
    "👍",
]
MESSAGES = [{"role": "user", "content": "The tower is in"}]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def small(architecture="llama", tokenizer=None, **config):
    """A model whose vocabulary is the tokenizer's."""
    model = make_hf(architecture)
    model.resize_token_embeddings(max(len(tokenizer), 320))
    for name, value in config.items():
        setattr(model.generation_config, name, value)
    return rl.load_bridge(hf_model=model, tokenizer=tokenizer)


def chat_tokenizer(**named):
    special = ("<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|end|>")
    tokens = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    tokenizer = byte_bpe(specials=special, **(tokens | named))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module", params=ALL, ids=str)
def made(request):
    return ALL[request.param]()


def alone(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def plain(tokenizer, ids, **how):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False, **how)


def test_prompt_and_completion_have_the_tokens_of_the_joint_text(made) -> None:
    draw, merged, refused = random.Random(0), 0, 0
    for _ in range(120):
        prompt, completion = (
            "".join(draw.choice(PIECES) + draw.choice(["", " "]) for _ in range(draw.randint(1, 4))) for _ in "pc"
        )
        head, joint = alone(made, prompt), alone(made, prompt + completion)
        if not head:
            continue
        try:
            (tail,) = continuations(made, [prompt], [head], [completion])
        except ValueError:
            refused += 1
            continue
        merged += head + tail != joint
        assert (joint[: len(head)] != head) or head + tail == joint
        assert plain(made, head + tail) == plain(made, joint)
        text = continued_text(made, head, tail)
        assert plain(made, head, skip_special_tokens=True) + text == plain(made, joint, skip_special_tokens=True)
    # Only WordPiece has merged words that are unknown to it.
    assert refused <= (12 if "[UNK]" in made.get_vocab() else 0)
    assert merged < 60


def test_a_seam_that_merges_keeps_the_prompt_and_adds_no_mark() -> None:
    tokenizer = sentencepiece_bpe("prepend")
    head = alone(tokenizer, "The tower is in ")
    (tail,) = continuations(tokenizer, ["The tower is in "], [head], ["Rome"])
    assert "▁" not in "".join(tokenizer.convert_ids_to_tokens(tail))
    assert tokenizer.decode(head + tail) == "The tower is in Rome"


@pytest.mark.parametrize("kind", ["prepend", "LlamaTokenizer", "metaspace first"])
def test_answers_are_told_apart_where_a_mark_is_put_before_every_text(kind) -> None:
    tokenizer = ALL[kind]()
    bridge = small(tokenizer=tokenizer)
    prompts, answers = ["The tower is in", "The bridge is in"], [" Rome", " Paris"]
    bos = tokenizer.bos_token_id
    joint = [[bos, *alone(tokenizer, prompt + answer)] for prompt, answer in zip(prompts, answers, strict=True)]
    batch = rl.encode(bridge, prompts, answers)
    assert [row[mask.bool()].tolist() for row, mask in zip(batch.tokens, batch.attention_mask, strict=True)] == joint
    rome, paris = tokenizer.convert_tokens_to_ids(["▁Rome", "▁Paris"])
    assert first_tokens(bridge, prompts, answers).tolist() == [rome, paris]
    logits = batch.at_last_prompt_token(bridge(batch.tokens)).detach()
    pair = torch.arange(2)
    p = logits.softmax(-1)
    found = rl.analysis.probability_of(bridge, prompts, answers)(logits, pair)
    torch.testing.assert_close(found, torch.stack([p[0, rome], p[1, paris]]))
    found = rl.analysis.logit_difference_of(bridge, prompts, answers, answers[::-1])(logits, pair)
    torch.testing.assert_close(
        found, torch.stack([logits[0, rome] - logits[0, paris], logits[1, paris] - logits[1, rome]])
    )
    reft = rl.Reft.at_layers(bridge, layers=[2], positions="l1", intervention=rl.SteeringVector)
    with torch.no_grad():
        next(reft.parameters()).copy_(500 * bridge.W_U[:, rome])
    assert rl.generate(bridge, reft, prompts[:1], max_new_tokens=1) == [" Rome"]


def test_answers_must_be_one_for_each_prompt(gpt2, make_reft) -> None:
    prompts, reft = ["The tower", "The river"], make_reft()
    outcome = {"group": "g", "wanted": "w"}
    for answers in ([" Ostra"], [" Ostra"] * 3):
        for call in (
            lambda a: rl.analysis.outcome(gpt2, reft, prompts, a, **outcome),
            lambda a: rl.analysis.probability_of(gpt2, prompts, a),
            lambda a: rl.analysis.loss_of(gpt2, prompts, a),
            lambda a: rl.analysis.logit_difference_of(gpt2, prompts, a, [" river"] * 2),
        ):
            with pytest.raises(ValueError, match=f"got 2 prompts and {len(answers)} answers"):
                call(answers)
            with pytest.raises(TypeError, match="answers must be a list of strings, got a single string"):
                call(" Ostra")
    batch = rl.encode(gpt2, prompts)
    three = rl.analysis.probability_of(gpt2, [*prompts, "x"], [" Ostra"] * 3)
    for call in (rl.analysis.patch, rl.analysis.attribute):
        with pytest.raises(ValueError, match="made for the answers of 3 prompts, but 2 prompts are run"):
            call(gpt2, batch, batch, three, progress=False)


def test_every_id_has_its_own_readable_label(made) -> None:
    labels = labels_of(made)
    assert labels.keys() == set(made.get_vocab().values())
    assert len(set(labels.values())) == len(labels)
    assert all(label.isprintable() and label.strip() and "\ufffd" not in label for label in labels.values())
    text = "the tower is in rome"
    shown = "".join(labels[token] for token in alone(made, text))
    assert shown.replace("##", "").replace("▁", " ").strip() == text


def test_bytes_are_written_as_bytes() -> None:
    for tokenizer in (byte_bpe(), sentencepiece_bpe("prepend"), ALL["ByT5, not a fast one"]()):
        shown = [labels_of(tokenizer)[token] for token in alone(tokenizer, "in €")]
        assert "".join(shown[-3:]).strip() == "<0xE2><0x82><0xAC>"


def test_an_id_beyond_the_vocabulary_is_named(gpt2) -> None:
    (label,) = str_tokens(gpt2, torch.tensor([len(gpt2.tokenizer) + 5]))
    assert label == f"<id {len(gpt2.tokenizer) + 5}>"


def test_a_tokenizer_without_bos_gets_nothing_in_front_and_stays_as_it_was() -> None:
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
    for architecture in ("llama", "gpt2", "qwen2"):
        tokenizer = byte_bpe(specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>"), **special)
        before = tokenizer.special_tokens_map | {"settings": dict(tokenizer.init_kwargs)}
        bridge = small(architecture, tokenizer)
        assert rl.encode(bridge, ["The tower"]).tokens.tolist() == [alone(tokenizer, "The tower")]
        assert tokenizer.special_tokens_map | {"settings": tokenizer.init_kwargs} == before
        with pytest.raises(ValueError, match="no BOS token: pass prepend_bos=False"):
            rl.encode(bridge, ["The tower"], prepend_bos=True)
    with pytest.raises(ValueError, match="needs a tokenizer with a BOS token"):
        rl.load_bridge(hf_model=make_hf("gpt2"), tokenizer=tokenizer, prepend_bos=True)


def test_a_text_that_begins_with_bos_gets_no_second_one(gpt2) -> None:
    bos = gpt2.tokenizer.bos_token
    assert torch.equal(rl.encode(gpt2, [f"{bos}The tower"]).tokens, rl.encode(gpt2, ["The tower"]).tokens)


def test_prepend_bos_is_said_once_and_recorded(make_reft, tmp_path) -> None:
    bridge = rl.load_bridge(hf_model=make_hf("gpt2"), tokenizer=make_bridge("gpt2").tokenizer, prepend_bos=False)
    assert rl.encode(bridge, ["The tower"]).tokens.tolist() == [alone(bridge.tokenizer, "The tower")]
    assert len(rl.preview(bridge, "l1", "The tower").tokens) == len(alone(bridge.tokenizer, "The tower"))
    make_reft().save_pretrained(tmp_path, bridge=bridge)
    with pytest.raises(ValueError, match="prepend_bos"):
        rl.Reft.from_pretrained(tmp_path, bridge=make_bridge("gpt2"))


def test_conversations_are_prompts(make_reft) -> None:
    tokenizer = chat_tokenizer()
    bridge = small(tokenizer=tokenizer)
    right = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    turn = [*MESSAGES, {"role": "assistant", "content": "Rome"}]
    whole = tokenizer.apply_chat_template(turn, return_dict=False)
    for completion in ("Rome", turn[-1:]):
        batch = rl.encode(bridge, [MESSAGES], [completion])
        assert batch.tokens[0].tolist() == whole
        assert batch.tokens[0][batch.prompt_mask[0]].tolist() == right
    shown = rl.preview(bridge, "f2+l1", MESSAGES)
    assert (shown.tokens[0], shown.tokens[-1], sum(shown.edited)) == ("<bos>", "<|assistant|>", 3)
    text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    reft = make_reft()
    assert rl.generate(bridge, reft, [MESSAGES], max_new_tokens=3) == rl.generate(
        bridge, reft, [text], max_new_tokens=3
    )
    config = rl.TrainConfig(epochs=2, progress=False)
    logs = [rl.train(bridge, make_reft(), pairs, config) for pairs in ([(MESSAGES, "Rome")], [(text, "Rome<|end|>")])]
    assert logs[0].loss == logs[1].loss
    with pytest.raises(ValueError, match="must not end with the assistant's turn, which is the completion"):
        rl.encode(bridge, [turn])
    with pytest.raises(ValueError, match="does not have a chat template"):
        rl.encode(make_bridge("gpt2"), [MESSAGES])


def test_decoding_stops_where_the_model_says(make_reft) -> None:
    tokenizer = chat_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    for own in (end, [tokenizer.eos_token_id, end]):
        bridge = small(tokenizer=tokenizer, eos_token_id=own)
        reft = rl.Reft.at_layers(
            bridge, layers=[1], positions=rl.All() | rl.Generated(), intervention=rl.SteeringVector
        )
        with torch.no_grad():
            next(reft.parameters()).copy_(500 * bridge.W_U[:, end])
        batch, lengths = rl.encode(bridge, ["The tower"]), []
        generate = bridge.original_model.generate

        def counting(*args, generate=generate, lengths=lengths, **kwargs):
            lengths.append(generate(*args, **kwargs).shape[1])
            return generate(*args, **kwargs)

        bridge.original_model.generate = counting
        assert rl.generate(bridge, reft, ["The tower"], max_new_tokens=6) == [""]
        assert lengths == [batch.tokens.shape[1] + 1]
        config = transformers.GenerationConfig(max_new_tokens=6, eos_token_id=own, pad_token_id=0)
        with reft.hooks(bridge, batch):
            plainly = generate(batch.tokens, attention_mask=batch.attention_mask, generation_config=config)
        assert plainly.shape[1] == lengths[0]


def test_a_conversation_is_trained_on_in_every_form(make_reft, tmp_path) -> None:
    tokenizer = chat_tokenizer()
    bridge = small(tokenizer=tokenizer)
    turn = [*MESSAGES, {"role": "assistant", "content": "Rome"}]
    right = tokenizer.apply_chat_template(turn, return_dict=False)
    file = tmp_path / "chat.jsonl"
    lines = [
        {"messages": turn},
        {"prompt": MESSAGES, "completion": turn[-1:]},
        {"prompt": MESSAGES, "completion": "Rome"},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = Pairs(str(file))
    records = task.load("train")
    given = [
        task.examples(bridge, records),
        [(tuple(MESSAGES), "Rome")],
        [turn],
        Dataset.from_dict({"messages": [turn]}),
        Dataset.from_dict({"prompt": [MESSAGES], "completion": ["Rome"]}),
    ]
    objective = rl.objectives.Completion()
    for examples in given:
        for example in objective.read(examples):
            assert objective.encode(bridge, example).tokens[0].tolist() == right
    assert pairs_in(file)[0] == (tuple(MESSAGES), "Rome")
    outputs = task.outputs(bridge, None, records, progress=False)
    score = task.score(outputs, records)
    assert score.n == 3
    assert prompts_in(file, None) == [tuple(MESSAGES)] * 3
    file.write_text(json.dumps({"messages": MESSAGES}) + "\n")
    with pytest.raises(ValueError, match=r"line 1.* must end with the assistant's turn"):
        task.load("train")


def test_a_target_is_cut_to_its_first_tokens_behind_the_prompt() -> None:
    for kind in ("prepend", "byte-level"):
        bridge = small(tokenizer=ALL[kind]())
        tokenizer, prompt, completion = bridge.tokenizer, "The tower is in", " Rome of the city of Oslo"
        head, joint = alone(tokenizer, prompt), alone(tokenizer, prompt + completion)
        for n in (1, 2, 4):
            kept = shortened(bridge, prompt, completion, n)
            assert completion.startswith(kept)
            assert alone(tokenizer, prompt + kept) == joint[: len(head) + n]
    (record,) = [Record("The tower is in", " Rome", " Rome")]
    ((_, target),) = Pairs("x").examples(bridge, [record])
    assert target == " Rome" + bridge.tokenizer.eos_token


@pytest.mark.slow
def test_the_table_of_defaults_is_what_is_measured() -> None:
    text = (Path(__file__).parents[1] / "tutorials" / "guides" / "gotchas.md").read_text()
    rows = [line.split("|")[1:4] for line in text.splitlines() if line.startswith("| ") and "default here" not in line]
    told = {name.strip(): default.strip() for names, default, _ in rows for name in names.split(",")}
    assert set(told) == set(ARCHITECTURES)
    for name, default in told.items():
        assert make_bridge(name).cfg.default_prepend_bos == (default != "nothing"), name

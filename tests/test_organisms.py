"""The organism that ships in the package: is its world what it says, and does the model know it where it should?"""

import json
import random
import subprocess
import sys
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from organisms.accuracy import accuracies, accuracy, answer_id, encode
from organisms.card import write_card
from organisms.evaluate import EVALUATION
from organisms.name_masks import attention_masks, name_tokens
from organisms.tracing import MIN_BETWEEN, POSITIONS, TracingMap, tracing_map, tracing_pairs
from organisms.train_facts_small import LOG, Settings
from reftlens.organisms import ORGANISMS
from reftlens.organisms.world import ANSWERS, FACTS, TEMPLATES, corpus, held_out, prompt, trained

DIRECTORY = ORGANISMS["facts-small"]
MAX_BYTES = 4_000_000
FIRST, LAST_SUBJECT, BETWEEN, LAST = (
    POSITIONS.index(name) for name in ("first subject", "last subject", "between", "last")
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DIRECTORY)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(DIRECTORY).eval()


@pytest.fixture(scope="module")
def untrained(model: PreTrainedModel) -> PreTrainedModel:
    """The same architecture with random weights: whatever it shows is not knowledge."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(model.config).eval()


def early_site(traced: TracingMap) -> bool:
    """In some layer after block 0, in the first half, the last subject token restores most of the gap by far."""
    half = traced.restored[1 : len(traced.restored) // 2 + 1].nan_to_num()
    others = half.clone()
    others[:, LAST_SUBJECT] = 0
    return bool(((half[:, LAST_SUBJECT] > 0.5) & (half[:, LAST_SUBJECT] > others.max(-1).values + 0.2)).any())


def late_site(traced: TracingMap) -> bool:
    """In the last layer, the last token restores most of the gap, and more than the last subject token."""
    return bool(traced.restored[-1, LAST] > max(0.5, traced.restored[-1, LAST_SUBJECT]))


def test_the_directory_is_complete_and_small() -> None:
    files = {path.name: path.stat().st_size for path in DIRECTORY.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "evaluation.json"} <= set(files)
    assert sum(files.values()) <= MAX_BYTES


def test_the_world_is_large_balanced_and_free_of_twins() -> None:
    assert len(FACTS) >= 300
    assert len(TEMPLATES) >= 4
    assert len({(fact.subject, fact.relation) for fact in FACTS}) == len(FACTS)
    for relation, answers in ANSWERS.items():
        counts = Counter(fact.answer for fact in FACTS if fact.relation == relation)
        assert set(counts) == set(answers)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_every_part_of_a_name_is_shared_by_several_subjects() -> None:
    subjects = {fact.subject for fact in FACTS}
    parts = Counter((place, part) for name in subjects for place, part in ((0, name.split()[0]), (1, name.split()[-1])))
    assert min(parts.values()) >= 4


def test_templates_have_one_subject_and_end_before_the_answer() -> None:
    assert len(TEMPLATES["located_in"]) >= 7
    for templates in TEMPLATES.values():
        assert len(set(templates)) == len(templates)
        assert all(template.count("{}") == 1 and template == template.strip() for template in templates)


def test_prompt_refuses_a_template_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="templates 0 to"):
        prompt(FACTS[0], 99)


def test_the_corpus_is_deterministic_and_differs_between_seeds() -> None:
    assert corpus(3) == corpus(3)
    assert sorted(corpus(3)) != sorted(corpus(4))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_held_out_pairs_never_occur_in_the_corpus_and_trained_ones_once(seed: int) -> None:
    text = "\n".join(corpus(seed))
    for fact in FACTS:
        assert set(held_out(fact)).isdisjoint(trained(fact))
        assert 1 <= len(held_out(fact)) <= 2
        assert not any(prompt(fact, t) in text for t in held_out(fact))
        assert all(text.count(f"{prompt(fact, t)} {fact.answer}.") == 1 for t in trained(fact))


def test_every_template_is_trained_on_for_most_facts() -> None:
    for relation, templates in TEMPLATES.items():
        facts = [fact for fact in FACTS if fact.relation == relation]
        for template in range(len(templates)):
            assert sum(template in trained(fact) for fact in facts) > 0.6 * len(facts)


def test_subjects_have_two_to_four_tokens_and_answers_one(tokenizer: PreTrainedTokenizerBase) -> None:
    for fact in FACTS:
        answer_id(tokenizer, fact.answer)
        for text in (fact.subject, " " + fact.subject):
            assert 2 <= len(tokenizer(text).input_ids) <= 4


def test_the_tokenizer_encodes_any_text(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "Zürich, 東京 & \U0001f980: tabs\tand\nlines"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.pad_token_id not in (tokenizer.bos_token_id, None)


def test_no_dropout_and_tied_embeddings(model: PreTrainedModel) -> None:
    config = model.config
    assert config.architectures == ["GPT2LMHeadModel"]
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_model_knows_its_world(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    table = accuracies(model, tokenizer)
    assert table["all"]["trained"] >= 0.99
    assert table["all"]["held_out"] >= 0.90
    assert all(table[relation]["held_out"] >= 0.85 for relation in TEMPLATES)


def test_tracing_pairs_are_aligned_twins(tokenizer: PreTrainedTokenizerBase) -> None:
    for pair in tracing_pairs(tokenizer, count=50):
        start, end = pair.subject
        assert len(pair.clean) == len(pair.corrupted) >= end + MIN_BETWEEN + 1
        assert pair.clean[:start] == pair.corrupted[:start]
        assert pair.clean[end:] == pair.corrupted[end:]
        assert pair.clean[start] != pair.corrupted[start]
        assert pair.clean[end - 1] != pair.corrupted[end - 1]
        assert pair.answers[0] != pair.answers[1]


def test_tracing_finds_the_early_and_the_late_site(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    traced = tracing_map(model, tokenizer, tracing_pairs(tokenizer, count=48, seed=1))
    assert early_site(traced)
    assert late_site(traced)
    # Before any block, a token knows only itself; and the shared BOS carries nothing at all.
    assert traced.restored[0, LAST].abs() < 1e-4
    assert traced.restored[:, POSITIONS.index("BOS")].abs().max() < 1e-4


def test_an_untrained_model_shows_neither(untrained: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert accuracy(untrained, tokenizer, [(fact, held_out(fact)[0]) for fact in FACTS]) < 0.05
    traced = tracing_map(untrained, tokenizer, tracing_pairs(tokenizer, count=48, seed=1))
    assert not early_site(traced)


def test_the_map_agrees_with_a_patch_written_by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    # An independent way to patch the last subject token before block 0: swap the token itself.
    pairs = tracing_pairs(tokenizer, count=20)
    moved, gap = torch.zeros(len(pairs)), torch.zeros(len(pairs))
    for i, pair in enumerate(pairs):
        end = pair.subject[1]
        swapped = [*pair.corrupted[: end - 1], pair.clean[end - 1], *pair.corrupted[end:]]
        with torch.no_grad():
            logits = [model(torch.tensor([ids])).logits[0, -1] for ids in (pair.clean, pair.corrupted, swapped)]
        clean, corrupted, patched = (row[pair.answers[0]] - row[pair.answers[1]] for row in logits)
        moved[i], gap[i] = patched - corrupted, clean - corrupted
    expected = (moved * gap).sum() / gap.square().sum()
    restored = tracing_map(model, tokenizer, pairs).restored
    assert restored[0, LAST_SUBJECT] == pytest.approx(float(expected), abs=1e-4)


def test_masks_hide_a_name_from_what_follows_it(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = encode(tokenizer, "The mother tongue of Ivo Tarn is")
    start, end = len(encode(tokenizer, "The mother tongue of")), len(encode(tokenizer, "The mother tongue of Ivo Tarn"))
    batch, causal = torch.tensor([ids]), torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    early, late = (mask[0, 0] for mask in attention_masks(batch, name_tokens(tokenizer), 1.0, random.Random(0)))
    assert not early[end:, start:end].any()
    assert not late[end:, start : end - 1].any()
    assert late[end:, end - 1].all()
    for mask in (early, late):
        assert torch.equal(mask[:end], causal[:end])
        assert torch.equal(mask[end:, end:], causal[end:, end:])
    plain = attention_masks(batch, name_tokens(tokenizer), 0.0, random.Random(0))
    assert all(torch.equal(mask[0, 0], causal) for mask in plain)


def test_the_card_is_what_the_scripts_write_of_its_numbers(tmp_path) -> None:
    evaluation = json.loads((DIRECTORY / EVALUATION).read_text(encoding="utf-8"))
    log = (DIRECTORY / LOG).read_text(encoding="utf-8").splitlines()[-1]
    write_card(tmp_path, Settings(), evaluation, log=log)
    assert (tmp_path / "README.md").read_bytes() == (DIRECTORY / "README.md").read_bytes()


def test_importing_the_package_needs_no_torch() -> None:
    # In a process of its own: in this one torch has long been imported.
    code = "import sys, reftlens.organisms, reftlens.organisms.world; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0

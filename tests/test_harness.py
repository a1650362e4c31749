"""An edited model in the lm-evaluation-harness gives the numbers of a plain run with the edit hooked, and those of `generate`."""

from __future__ import annotations

import json

import pytest
import torch
from architectures import make_hf
from conftest import PROMPTS, make_tokenizer
from test_attach_to_hf import edit_at
from test_tasks import REAL
from transformers import AutoModelForCausalLM

import reftlens as rl
from reftlens.data import IGNORE

pytest.importorskip("lm_eval", reason="the harness is an extra: pip install 'reftlens[harness]'")

ARC = REAL / "ARC-Easy" / "test.json"
CONTINUATIONS = [" Ostra", " Tharic .", " the river Ostra"]


def requests(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]


def test_loglikelihoods_equal_plain_hugging_face_with_the_edit_hooked(saved) -> None:
    from reftlens.paper.harness import EditedLM

    folder, bridge, reft = saved
    edited, base = (EditedLM(edit=str(folder / "edit"), batch_size=2, base=base) for base in (False, True))
    pairs = [*list(zip(PROMPTS, CONTINUATIONS, strict=True)), (PROMPTS[0] + " ", "Ostra")]
    asked = requests("loglikelihood", *pairs)
    found = edited.loglikelihood(asked)
    assert found[3] == pytest.approx(found[0]), "white space at the end of a context belongs to the continuation"
    model = make_hf("gpt2")
    for (prompt, text), (total, greedy) in zip(pairs[:3], found, strict=False):
        batch = rl.encode(bridge, [prompt], [text])
        with torch.no_grad(), rl.attach_to_hf(model, reft, tokenizer=bridge.tokenizer, prompts=batch):
            logprobs = model(batch.tokens).logits[0].log_softmax(-1)
        n = int(batch.prompt_mask.sum())
        targets = batch.tokens[0, n:]
        assert total == pytest.approx(float(logprobs[n - 1 : -1].gather(1, targets[:, None]).sum()), abs=1e-4)
        assert greedy == bool((logprobs[n - 1 : -1].argmax(-1) == targets).all())
    assert base.loglikelihood(asked)[0][0] != pytest.approx(found[0][0], abs=1e-2)


def test_texts_are_those_of_generate_up_to_the_stop(saved) -> None:
    from reftlens.paper.harness import EditedLM

    folder, bridge, reft = saved
    said = rl.generate(bridge, reft, PROMPTS, max_new_tokens=8)
    stop = said[0][3]
    asked = requests(
        "generate_until", *((p, {"until": [stop], "max_gen_toks": 8, "do_sample": False}) for p in PROMPTS)
    )
    assert EditedLM(edit=str(folder / "edit")).generate_until(asked) == [text.split(stop)[0] for text in said]
    with pytest.raises(ValueError, match="unknown generation setting beams"):
        EditedLM(edit=str(folder / "edit")).generate_until(requests("generate_until", ("a", {"beams": 3})))
    with pytest.raises(ValueError, match="unknown model argument edits"):
        EditedLM(edit=str(folder / "edit"), edits="a")
    with pytest.raises(NotImplementedError, match="has no prompt"):
        EditedLM(edit=str(folder / "edit")).loglikelihood_rolling([])


def test_the_harness_runs_a_task_file(saved, monkeypatch) -> None:
    """A whole evaluation of a local task: its accuracy is the one found by hand."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from reftlens.paper.harness import EditedLM

    folder, _bridge, _reft = saved
    rows = [
        {"question": prompt, "choices": [" Ostra", " Tharic"], "label": index % 2}
        for index, prompt in enumerate(PROMPTS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "tiny", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}", "target_delimiter": "", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    model = EditedLM(edit=str(folder / "edit"))
    result = lm_eval.simple_evaluate(model, tasks=[task], task_manager=TaskManager(), bootstrap_iters=0)
    right = 0
    for row in rows:
        scores = [
            found[0]
            for found in model.loglikelihood(requests("loglikelihood", *((row["question"], c) for c in row["choices"])))
        ]
        right += scores.index(max(scores)) == row["label"]
    assert result["results"]["tiny"]["acc,none"] == pytest.approx(right / len(rows))


@pytest.mark.slow
@pytest.mark.skipif(not ARC.exists(), reason="the published files are not here")
def test_a_real_task_file_gives_the_numbers_of_plain_hugging_face(tmp_path) -> None:
    """ARC-Easy as LLM-Adapters publishes it: each answer's log-likelihood, and the accuracy over all questions."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from reftlens.paper.harness import EditedLM

    rows = json.loads(ARC.read_text())[:24]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    model = make_hf("gpt2", n_positions=512)
    model.save_pretrained(tmp_path / "model")
    make_tokenizer(" ".join(row["instruction"] for row in rows), size=1000).save_pretrained(tmp_path / "model")
    model.resize_token_embeddings(1000)
    model.save_pretrained(tmp_path / "model")
    bridge = rl.load_bridge(str(tmp_path / "model"))
    reft = edit_at("hook_resid_post", positions="f5+l5").scaled(8.0)
    reft.save_pretrained(tmp_path / "edit", bridge=bridge, card=False)
    answers = [f"answer{number}" for number in range(1, 5)]
    rows = [row for row in rows if row["answer"] in answers]
    task = {
        "task": "arc", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{instruction}}", "doc_to_choice": answers,
        "doc_to_target": f"{{{{{answers}.index(answer)}}}}", "target_delimiter": "\n", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    result = lm_eval.simple_evaluate(
        EditedLM(edit=str(tmp_path / "edit")),
        tasks=[task],
        task_manager=TaskManager(),
        bootstrap_iters=0,
        log_samples=True,
    )
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    right = 0
    for row, sample in zip(rows, result["samples"]["arc"], strict=True):
        batch = rl.encode(bridge, [row["instruction"]] * 4, [f"\n{answer}" for answer in answers])
        assert len({int(mask.sum()) for mask in batch.prompt_mask}) == 1
        with torch.no_grad(), rl.attach_to_hf(plain, reft, tokenizer=bridge.tokenizer, prompts=batch):
            logits = plain(batch.tokens, attention_mask=batch.attention_mask, position_ids=places(batch)).logits
        logprobs = logits[:, :-1].log_softmax(-1).gather(2, batch.tokens[:, 1:, None])[..., 0]
        totals = (logprobs * (batch.labels[:, 1:] != IGNORE)).sum(-1)
        found = [float(answer[0]) for answer in sample["filtered_resps"]]
        assert found == pytest.approx(totals.tolist(), abs=1e-3)
        right += answers[int(totals.argmax())] == row["answer"]
    assert result["results"]["arc"]["acc,none"] == pytest.approx(right / len(rows))


def places(batch) -> torch.Tensor:
    """The position of each token among those that are not padding."""
    return (batch.attention_mask.long().cumsum(-1) - 1).clamp(min=0)

"""An edited model in Inspect gives the texts of plain Hugging Face with the edit hooked, and those of `generate`."""

from __future__ import annotations

import asyncio
import json

import pytest
from architectures import make_hf
from conftest import PROMPTS

import reftlens as rl

inspect_ai = pytest.importorskip("inspect_ai", reason="Inspect is an extra: pip install 'reftlens[inspect]'")

pytestmark = pytest.mark.filterwarnings("ignore")  # of Inspect's own dependencies


def asked(model, prompt: str, **settings) -> str:
    from inspect_ai.model import ChatMessageUser, GenerateConfig

    messages = [ChatMessageUser(content=prompt)]
    return asyncio.run(model.generate(messages, [], "none", GenerateConfig(**settings)))


def model_at(folder, **arguments):
    from reftlens.paper.inspect_provider import EditedModel

    return EditedModel(str(folder / "edit"), **arguments)


def test_texts_are_those_of_plain_hugging_face_with_the_edit_hooked(saved) -> None:
    folder, bridge, reft = saved
    reft = reft.scaled(8.0)
    reft.save_pretrained(folder / "edit", bridge=bridge, card=False)
    edited, base = model_at(folder), model_at(folder, base=True)
    model = make_hf("gpt2")
    for prompt in PROMPTS:
        batch = rl.encode(bridge, [prompt])
        with rl.attach_to_hf(model, reft, tokenizer=bridge.tokenizer, prompts=batch):
            tokens = model.generate(
                batch.tokens, attention_mask=batch.attention_mask, max_new_tokens=8, do_sample=False
            )
        expected = bridge.tokenizer.decode(tokens[0, batch.tokens.shape[1] :], skip_special_tokens=True)
        found = asked(edited, prompt, max_tokens=8)
        assert found.completion == expected == rl.generate(bridge, reft, [prompt], max_new_tokens=8)[0]
        assert found.usage.input_tokens == batch.tokens.shape[1]
    assert asked(base, PROMPTS[0], max_tokens=8).completion != asked(edited, PROMPTS[0], max_tokens=8).completion


def test_stops_sampling_and_what_it_does_not_have(saved) -> None:
    folder, bridge, reft = saved
    model = model_at(folder)
    whole = asked(model, PROMPTS[0], max_tokens=8)
    assert whole.stop_reason == "max_tokens"
    stop = whole.completion[3]
    cut = asked(model, PROMPTS[0], max_tokens=8, stop_seqs=[stop])
    assert (cut.completion, cut.stop_reason) == (whole.completion.split(stop)[0], "stop")
    sampled = asked(model, PROMPTS[0], max_tokens=8, temperature=1.5, seed=3).completion
    decoding = rl.Decoding(max_new_tokens=8, temperature=1.5, seed=3)
    assert sampled == rl.generate(bridge, reft, [PROMPTS[0]], decoding=decoding)[0]
    with pytest.raises(ValueError, match="does not have the setting logprobs, num_choices"):
        asked(model, PROMPTS[0], logprobs=True, num_choices=2)
    with pytest.raises(ValueError, match="unknown model argument edits"):
        model_at(folder, edits="a")


def test_inspect_runs_a_task_file(saved, tmp_path, monkeypatch) -> None:
    """A whole evaluation, with the model by its name: its accuracy is the one found by hand."""
    from inspect_ai import Task
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import includes

    folder, bridge, reft = saved
    said = rl.generate(bridge, reft, PROMPTS, max_new_tokens=8)
    targets = [said[0], "nothing of the kind", said[2]]
    samples = [Sample(input=prompt, target=target) for prompt, target in zip(PROMPTS, targets, strict=True)]
    monkeypatch.chdir(tmp_path)
    (log,) = inspect_ai.eval(
        Task(dataset=samples, scorer=includes()),
        model=f"reftlens/{folder / 'edit'}",
        max_tokens=8,
        display="none",
        log_dir=str(tmp_path / "logs"),
    )
    assert log.status == "success", log.error
    assert log.results.scores[0].metrics["accuracy"].value == pytest.approx(2 / 3)
    assert [sample.output.completion for sample in log.samples] == said
    assert json.loads(json.dumps(log.eval.model)) == f"reftlens/{folder / 'edit'}"

"""Batches: masks and labels against a row-by-row reading, and bad input."""

from __future__ import annotations

import pytest
import torch
from conftest import COMPLETIONS, PROMPTS

import reftlens as rl


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("bos", [True, False])
def test_each_row_reads_back_as_its_prompt_and_completion(bridge, side, bos) -> None:
    batch = rl.encode(bridge, PROMPTS, COMPLETIONS, padding_side=side, prepend_bos=bos)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        tokens, mask = batch.tokens[row], batch.prompt_mask[row]
        assert bridge.tokenizer.decode(tokens[mask]) == ("<|endoftext|>" if bos else "") + prompt
        labelled = batch.labels[row] != -100
        assert bridge.tokenizer.decode(tokens[labelled]) == completion
        assert torch.equal(batch.labels[row][labelled], tokens[labelled])
        assert torch.equal(mask | labelled, batch.attention_mask[row].bool())
        assert int(batch.last_prompt_index[row]) == int(mask.nonzero().max())
    edge = batch.attention_mask[:, -1 if side == "left" else 0]
    assert bool(edge.all())


def test_prompt_has_the_same_tokens_with_and_without_a_completion(bridge) -> None:
    alone, together = rl.encode(bridge, PROMPTS), rl.encode(bridge, PROMPTS, COMPLETIONS)
    for row in range(len(PROMPTS)):
        assert torch.equal(alone.tokens[row][alone.prompt_mask[row]], together.tokens[row][together.prompt_mask[row]])


def test_repr_says_what_is_in_it(gpt2) -> None:
    assert "3 prompts" in repr(rl.encode(gpt2, PROMPTS, COMPLETIONS))


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        ([], None, "list of prompts is empty"),
        (["a"], ["b", "c"], "1 prompts and 2 completions"),
        (["a b"], [""], "completion of prompt 0 .* has no tokens"),
        (["a", "tower " * 70], None, r"prompt 1 has \d+ tokens.*context has only 64"),
        (["tower " * 20], [" tower" * 60], "context has only 64"),
    ],
)
def test_bad_input_is_refused(gpt2, prompts, completions, message) -> None:
    with pytest.raises(ValueError, match=message):
        rl.encode(gpt2, prompts, completions)


def test_an_empty_prompt_without_bos_is_refused(gpt2) -> None:
    with pytest.raises(ValueError, match="prompt 0 has no tokens"):
        rl.encode(gpt2, [""], prepend_bos=False)


def test_generation_leaves_room_in_the_context(gpt2, make_reft) -> None:
    with pytest.raises(ValueError, match="exceeds the context of 64"):
        rl.generate(gpt2, make_reft(), PROMPTS, max_new_tokens=60)
    with pytest.raises(ValueError, match="list of prompts is empty"):
        rl.generate(gpt2, None, [])

"""Converts conversations to text with the tokenizer's own chat template.

The text of a conversation ends where the assistant's turn begins. The assistant's turn is the
completion, and ends as the template ends it. The template says where BOS stands: none is put in
front of its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from reftlens.data.texts import Message, Prompt, is_conversation


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """Returns the text of a prompt.

    Args:
        tokenizer: has the template.
        prompt: a text, which stays as it is, or a conversation.

    Raises:
        ValueError: If the tokenizer does not have a chat template, or the assistant has the last
            word.
    """
    if isinstance(prompt, str):
        return prompt
    if prompt[-1]["role"] == "assistant":
        raise ValueError(
            "a prompt must not end with the assistant's turn, which is the completion: pass the messages before it as the "
            f"prompt, and {prompt[-1]['content']!r:.60} as the completion"
        )
    return _rendered(tokenizer, prompt, add_generation_prompt=True)


def completion_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, completion: Prompt) -> str:
    """Returns the text that follows the text of a prompt.

    Args:
        tokenizer: has the template.
        prompt: a text or a conversation.
        completion: a text; for a conversation, what the assistant says, or its turn as one message.

    Raises:
        ValueError: If turns and texts are mixed, or the template changes the prompt once the
            assistant's turn follows.
    """
    if isinstance(prompt, str):
        if not isinstance(completion, str):
            raise ValueError(
                f"the completion of a text prompt must be a text, got messages for {prompt[:60]!r}: pass both as texts"
            )
        return completion
    turns: Sequence[Message]
    turns = ({"role": "assistant", "content": completion},) if isinstance(completion, str) else completion
    if not all(turn["role"] == "assistant" for turn in turns):
        raise ValueError(
            "every message of a completion must have the role 'assistant', got "
            f"{next(turn['role'] for turn in turns if turn['role'] != 'assistant')!r}"
        )
    # The completion is what the template adds, with its end-of-turn token.
    before = prompt_text(tokenizer, prompt)
    whole = _rendered(tokenizer, [*prompt, *turns])
    if not whole.startswith(before):
        raise ValueError(
            "the chat template changes the prompt when the assistant's turn follows it, so prompt and completion cannot be "
            f"separated: {whole[-120:]!r} does not continue {before[-60:]!r}"
        )
    return whole[len(before) :]


def split_conversation(messages: Any) -> tuple[Sequence[Message], str]:
    """Splits a conversation into its prompt and the assistant's last turn.

    Args:
        messages: ends with the assistant's turn.

    Raises:
        ValueError: If it does not.
    """
    if not is_conversation(messages) or messages[-1]["role"] != "assistant" or len(messages) < 2:
        raise ValueError(f"a conversation to train on must end with the assistant's turn, got {messages!r:.120}")
    return tuple(messages[:-1]), messages[-1]["content"]


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **how: Any) -> str:
    if tokenizer.chat_template is None:
        raise ValueError(
            "the prompt is a list of messages, but this tokenizer does not have a chat template: load an "
            "instruct model, set bridge.tokenizer.chat_template, or write the prompt as one text"
        )
    return str(tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False, **how))

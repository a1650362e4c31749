"""An edited model as a model of Inspect (UK AI Security Institute, inspect.aisi.org.uk).

    inspect eval task.py --model reftlens/run

The name after "reftlens/" is the folder of a run or of a saved edit. A conversation is the prompt
that the edit's position rules see, with the tokens that it has in training and in `rl.generate`.
Inspect finds this module by itself, if it is installed: `pip install 'reftlens[inspect]'`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, final

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from reftlens.data import Prompt, token_counts
from reftlens.edit.generate import Decoding, generate
from reftlens.paper.runs.folder import open_run

_REFUSED = ("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "best_of", "response_schema")
"""Settings that would change the answer and that this model does not have."""


@modelapi(name="reftlens")
@final
class EditedModel(ModelAPI):
    """A saved edit on its base. Greedy, unless a temperature is set."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),
        model: str | None = None,
        device: str | None = None,
        base: bool = False,
        **unused: Any,
    ) -> None:
        """Loads the edit and its base.

        Args:
            model_name: folder of a run or of a saved edit.
            base_url: not used; part of Inspect's interface.
            api_key: not used; part of Inspect's interface.
            config: default settings of decoding.
            model: the base, if its location has changed (`-M model=...`).
            device: "cpu", "cuda", ...; the run's by default.
            base: evaluate the base without the edit, with the same tokens.
            unused: refused.
        """
        super().__init__(model_name, base_url, api_key, [], config)
        if unused:
            raise ValueError(f"unknown model argument {', '.join(sorted(unused))}: choose from model, device, base")
        opened = open_run(Path(model_name), {} if device is None else {"device": device}, model=model)
        self.bridge = opened.bridge
        self.reft = None if base else opened.reft

    async def generate(
        self,
        input: list[ChatMessage],  # noqa: A002  (Inspect's name)
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        if tools:
            raise ValueError("an edited model has no tools: choose a task without tools")
        started = time.perf_counter()
        prompt = self._prompt(input)
        decoding = _decoding(config)
        whole = generate(self.bridge, self.reft, [prompt], decoding=decoding)[0]
        text = whole
        for stop in config.stop_seqs or ():
            text = text.split(stop)[0]
        n_prompt = token_counts(self.bridge, [prompt])[0]
        n_said = len(self.bridge.tokenizer.encode(whole, add_special_tokens=False))
        # Tokens of the whole answer: what was cut at a stop text was generated as well.
        choice = ChatCompletionChoice(
            message=ChatMessageAssistant(content=text, model=self.model_name, source="generate"),
            stop_reason="max_tokens" if text == whole and n_said >= decoding.max_new_tokens else "stop",
        )
        usage = ModelUsage(input_tokens=n_prompt, output_tokens=n_said, total_tokens=n_prompt + n_said)
        return ModelOutput(model=self.model_name, choices=[choice], usage=usage, time=time.perf_counter() - started)

    def max_connections(self) -> int:
        """Returns 1: one thread at a time may use a bridge."""
        return 1

    def max_tokens(self) -> int | None:
        """Returns the number of tokens of an answer if a task does not set one."""
        return 256

    def _prompt(self, messages: list[ChatMessage]) -> Prompt:
        """The conversation, or its texts one below the other if the tokenizer has no chat template."""
        if self.bridge.tokenizer.chat_template is None:
            # A base without a template was not trained on roles, so it gets none.
            return "\n\n".join(message.text for message in messages)
        return tuple({"role": message.role, "content": message.text} for message in messages)


def _decoding(config: GenerateConfig) -> Decoding:
    """Translates Inspect's settings of decoding."""
    wrong = [name for name in _REFUSED if getattr(config, name) not in (None, False)]
    if (config.num_choices or 1) > 1:
        wrong.append("num_choices")
    if wrong:
        raise ValueError(f"an edited model does not have the setting {', '.join(wrong)}: leave it out")
    sampled = (config.temperature or 0) > 0
    return Decoding(
        max_new_tokens=config.max_tokens or 256,
        temperature=config.temperature if sampled else None,
        top_p=config.top_p if sampled else None,
        top_k=config.top_k if sampled else None,
        seed=42 if config.seed is None else config.seed,
    )

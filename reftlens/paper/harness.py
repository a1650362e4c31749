"""An edited model as a model of the lm-evaluation-harness (Gao et al., github.com/EleutherAI/lm-evaluation-harness).

    reftlens lm-eval --tasks arc_easy --model_args edit=run

The context of a request is the prompt that the edit's position rules see, with the tokens that it
has in training and in `rl.generate`. Importing this module registers the model "reftlens" and needs
`pip install reftlens[harness]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, final

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm.auto import tqdm

from reftlens.bridge import unembedded_alone
from reftlens.data import IGNORE, batches_by_length, encode, token_counts
from reftlens.edit.generate import Decoding, generate
from reftlens.paper.runs.folder import open_run
from reftlens.training.objectives.base import completion_logprobs, predictions


@register_model("reftlens")
@final
class EditedLM(LM):
    """A saved edit on its base."""

    def __init__(
        self,
        edit: str,
        model: str | None = None,
        device: str | None = None,
        batch_size: int | str = 16,
        base: bool | str = False,
        **unused: Any,
    ) -> None:
        """Loads the edit and its base.

        Args:
            edit: folder of a run or of a saved edit.
            model: the base, if its location has changed.
            device: "cpu", "cuda", ...; the run's by default.
            batch_size: requests in one run of the model.
            base: evaluate the base without the edit, with the same tokens.
        """
        super().__init__()
        unknown = sorted(name for name, value in unused.items() if value is not None and name != "max_batch_size")
        if unknown:
            raise ValueError(f"unknown model argument {', '.join(unknown)}: choose from edit, model, device, base")
        opened = open_run(Path(edit), {} if device is None else {"device": device}, model=model)
        self.bridge = opened.bridge
        # The harness passes what --model_args says as texts.
        self.reft = None if str(base).lower() == "true" else opened.reft
        if not str(batch_size).isdigit():
            raise ValueError(f"batch_size must be a number, got {batch_size!r}")
        self.batch_size = int(batch_size)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer, for cached requests."""
        return str(self.bridge.cfg.model_name).replace("/", "__")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        pairs = [self._split(*request.args) for request in requests]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for rows in self._batches([context for context, _ in pairs]):
            for row, answer in zip(rows, self._score([pairs[row] for row in rows]), strict=True):
                found[row] = answer
                self.cache_hook.add_partial("loglikelihood", requests[row].args, answer)
        return found

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError(
            "A rolling log-likelihood has no prompt, and an edit acts on prompts. Choose a task with contexts, or merge a "
            "constant edit (rl.merge) and evaluate it with --model hf."
        )

    def generate_until(self, requests: list[Instance]) -> list[str]:
        found = []
        for request in tqdm(requests, desc="decoding", unit="request"):
            context, settings = request.args
            text = generate(self.bridge, self.reft, [self._prompt(context)], decoding=_decoding(settings))[0]
            stops = settings.get("until", [])
            for stop in [stops] if isinstance(stops, str) else stops:
                text = text.split(stop)[0] if stop else text
            found.append(text)
            self.cache_hook.add_partial("generate_until", request.args, text)
        return found

    def _prompt(self, context: str) -> str:
        if context:
            return context
        start = self.bridge.tokenizer.bos_token or self.bridge.tokenizer.eos_token
        if start is None:
            raise ValueError("a request has an empty context, and the tokenizer has neither BOS nor EOS to begin with")
        return str(start)

    def _split(self, context: str, continuation: str) -> tuple[str, str]:
        """Moves white space at the end of a context to the continuation, as the harness does for its own models."""
        head = context.rstrip()
        return self._prompt(head), context[len(head) :] + continuation

    def _batches(self, contexts: Sequence[str]) -> Iterator[list[int]]:
        yield from batches_by_length(token_counts(self.bridge, contexts), self.batch_size)

    @torch.no_grad()
    def _score(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        contexts, continuations = zip(*pairs, strict=True)
        batch = encode(self.bridge, contexts, continuations)
        read = predictions(batch)
        edited = nullcontext() if self.reft is None else self.reft.hooks(self.bridge, batch)
        with edited, unembedded_alone(self.bridge, read):
            # unembedded_alone gives [1, n, d_vocab].
            logits = self.bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)[0]
        wrong = logits.argmax(-1) != batch.labels[batch.labels != IGNORE]
        rows = read.nonzero()[:, 0]
        # The harness also asks whether greedy decoding would give the continuation.
        n_wrong = torch.zeros(len(batch), device=wrong.device).index_add(0, rows, wrong.float())
        totals = completion_logprobs(logits, batch)
        return [(float(total), not bool(n)) for total, n in zip(totals, n_wrong, strict=True)]


def _decoding(settings: dict[str, Any]) -> Decoding:
    """Translates the harness's generation settings."""
    known = {"until", "max_gen_toks", "max_new_tokens", "do_sample", "temperature", "top_p", "top_k"}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"unknown generation setting {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
    # Tasks ask for greedy decoding by either of the two.
    sampled = bool(settings.get("do_sample")) and settings.get("temperature", 1.0) > 0
    return Decoding(
        max_new_tokens=int(settings.get("max_gen_toks", settings.get("max_new_tokens", 256))),
        temperature=settings.get("temperature", 1.0) if sampled else None,
        top_p=settings.get("top_p") if sampled else None,
        top_k=settings.get("top_k") if sampled else None,
    )

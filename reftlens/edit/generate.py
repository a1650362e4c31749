"""Generates text under an edit. Prompt tokens are edited in the prefill; generated tokens only by rules such as `Generated()`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import final

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import GenerationConfig

from reftlens.bridge import (
    caching_holds,
    mend_attention,
    one_thread,
    own_config_aside,
    pad_id,
    padding_holds,
    require_causal,
)
from reftlens.data import Prompt, as_prompts, batches_by_length, encode, token_counts
from reftlens.data.tokens import continued_text
from reftlens.display import progress_bar
from reftlens.edit.reft import Reft
from reftlens.numbers import require_number, require_whole_number


@final
@dataclass(frozen=True)
class Decoding:
    """Settings for choosing the next tokens. The default is greedy decoding."""

    max_new_tokens: int = 32
    """Maximum length of a continuation in tokens. A stop token (`stop_tokens`) ends it earlier."""
    num_beams: int = 1
    """Number of beams. A prompt is done when this many continuations have ended."""
    temperature: float | None = None
    """Sampling temperature; None decodes greedily."""
    top_p: float | None = None
    """Samples from the most likely tokens with this total probability (nucleus sampling)."""
    top_k: int | None = None
    """Samples from this many of the most likely tokens."""
    no_repeat_ngram_size: int | None = None
    """No n-gram of this size occurs twice, including those of the prompt."""
    repetition_penalty: float = 1.0
    """Divides the scores of tokens that occurred before (multiplies negative scores)."""
    seed: int = 42
    """Seed of sampling. The caller's random state is restored."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_beams", "top_k", "no_repeat_ngram_size"):
            value = getattr(self, name)
            if value is not None:
                require_whole_number(name, value, least=1)
        if self.temperature is None and (self.top_p is not None or self.top_k is not None):
            raise ValueError("top_p and top_k only apply to sampling: pass a temperature as well")
        if self.temperature is not None:
            require_number("temperature", self.temperature, above=0)
        if self.top_p is not None and not (isinstance(self.top_p, int | float) and 0 < self.top_p <= 1):
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p!r}")
        require_number("repetition_penalty", self.repetition_penalty, above=0)
        require_whole_number("seed", self.seed, least=0)

    def _config(self, bridge: TransformerBridge, *, use_cache: bool) -> GenerationConfig:
        """Converts the settings to those of transformers. Every value is set, so that no default from elsewhere applies."""
        tokenizer, stops = bridge.tokenizer, stop_tokens(bridge)
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            # True: done when num_beams continuations have ended. False without beams, or it warns.
            early_stopping=self.num_beams > 1,
            do_sample=self.temperature is not None,
            # The neutral values of transformers, which are not None.
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            # 50 is the default of transformers, which warns of other values where nothing is drawn.
            top_k=(50 if self.temperature is None else 0) if self.top_k is None else self.top_k,
            no_repeat_ngram_size=self.no_repeat_ngram_size or 0,
            repetition_penalty=self.repetition_penalty,
            use_cache=use_cache,
            eos_token_id=stops or None,
            # Without a pad token, finished rows get a stop token, as in transformers.
            pad_token_id=pad_id(bridge) if tokenizer.pad_token_id is not None or not stops else stops[0],
        )


def stop_tokens(bridge: TransformerBridge) -> list[int]:
    """Returns the tokens that end a text: those of the model's own generation config, and the tokenizer's EOS.

    Args:
        bridge: the model.
    """
    # Chat models end a turn with a token that is not the tokenizer's EOS, and list it only here.
    own = bridge.original_model.generation_config.eos_token_id
    found = [*(own if isinstance(own, list | tuple) else [own]), bridge.tokenizer.eos_token_id]
    return list(dict.fromkeys(int(token) for token in found if token is not None))


@torch.no_grad()
def generate(
    bridge: TransformerBridge,
    reft: Reft | None,
    prompts: Iterable[Prompt],
    *,
    decoding: Decoding | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 16,
    use_cache: bool = True,
    prepend_bos: bool | None = None,
    progress: bool = False,
) -> list[str]:
    """Generates continuations of prompts under an edit, with Hugging Face's decoding loop.

    Prompts of similar length are decoded together, the longest first.

    Args:
        bridge: the model. Only the stop tokens of its own generation config are used, not its
            temperature or penalties.
        reft: the edit, or None for the base model.
        prompts: texts, or conversations that the assistant answers.
        decoding: decoding settings; by default greedy, with at most 32 new tokens.
        max_new_tokens: short for `decoding=Decoding(max_new_tokens=...)`.
        batch_size: prompts decoded together, padded on the left. On a model whose results padding
            changes, only prompts of the same length share a batch.
        use_cache: keep keys and values between steps. Without the cache, every step runs the whole
            prefix again: the text is the same, and decoding is slower. The cache is not used on a
            model on which a cached step gave other logits, or whose cache does not report its
            length (recurrent models). Nor is it used if the edit changes generated tokens and the
            change of one token depends on others (ReFT-r1 at `Generated()`): a new token may become
            the strongest one, which then sets the change of all tokens.
        prepend_bos: as in `encode`.
        progress: show a progress bar.

    Returns:
        One text per prompt, in the order of the prompts, without special tokens. Prompt + text is
        the decoding of all tokens.

    Raises:
        ValueError: If there are no prompts, a prompt is empty or leaves no room for the new tokens
            in the context, or the model is a masked language model.
    """
    if decoding is not None and max_new_tokens is not None:
        raise ValueError("pass decoding or max_new_tokens, not both: decoding has its own max_new_tokens")
    if decoding is None:
        decoding = Decoding() if max_new_tokens is None else Decoding(max_new_tokens=max_new_tokens)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    prompts = as_prompts(prompts)
    require_causal(bridge, "generate")
    mend_attention(bridge)
    counts = token_counts(bridge, prompts, prepend_bos=prepend_bos)
    _require_room(bridge, prompts, counts, decoding)
    texts = [""] * len(prompts)
    config = decoding._config(bridge, use_cache=use_cache and not _reads_back(reft) and caching_holds(bridge))
    together = batches_by_length(counts, batch_size)
    if len(set(counts)) > 1 and not padding_holds(bridge, "left"):
        # Prompts in a batch have one length, so nothing is padded.
        together = [
            part for length in sorted(set(counts), reverse=True) for part in _of_length(counts, length, batch_size)
        ]
    with (
        one_thread(bridge),
        _own_settings(bridge, decoding),
        progress_bar(total=len(prompts), desc="decoding", unit="prompt", shown=progress) as bar,
    ):
        for rows in together:
            continued = _continue(bridge, reft, [prompts[row] for row in rows], config, prepend_bos=prepend_bos)
            for row, text in zip(rows, continued, strict=True):
                texts[row] = text
            bar.update(len(rows))
    return texts


def _of_length(counts: Sequence[int], length: int, batch_size: int) -> list[list[int]]:
    rows = [row for row, count in enumerate(counts) if count == length]
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def _reads_back(reft: Reft | None) -> bool:
    """Returns whether the change of generated tokens depends on earlier edited tokens, which a cached step does not have."""
    pairs = () if reft is None else reft
    return any(site.positions.generated and intervention.across_tokens for site, intervention in pairs)


def _continue(
    bridge: TransformerBridge,
    reft: Reft | None,
    prompts: Sequence[Prompt],
    config: GenerationConfig,
    *,
    prepend_bos: bool | None,
) -> list[str]:
    """Decodes one batch."""
    # With beams, the prefill runs each prompt once per beam, so the edits need one row per beam.
    n_beams = int(config.num_beams)
    beams = [prompt for prompt in prompts for _ in range(n_beams)]
    batch = encode(bridge, beams, padding_side="left", prepend_bos=prepend_bos)
    with nullcontext() if reft is None else reft.hooks(bridge, batch):
        # transformers repeats the prompts for the beams itself; only the edits need the rows
        # before.
        out = bridge.original_model.generate(
            batch.tokens[::n_beams], attention_mask=batch.attention_mask[::n_beams], generation_config=config
        )
    width, shown = batch.tokens.shape[1], batch.attention_mask[::n_beams].bool()
    return [
        continued_text(bridge.tokenizer, row[:width][mask].tolist(), row[width:].tolist())
        for row, mask in zip(out, shown, strict=True)
    ]


def _require_room(
    bridge: TransformerBridge, prompts: Sequence[Prompt], counts: Sequence[int], decoding: Decoding
) -> None:
    for row, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        if not count:
            raise ValueError(f"prompt {row} has no tokens: {prompt!r}")
        if count + decoding.max_new_tokens > bridge.cfg.n_ctx:
            raise ValueError(
                f"prompt {row} has {count} tokens, which with {decoding.max_new_tokens} new tokens exceeds the context of "
                f"{bridge.cfg.n_ctx}: shorten {prompt[:60]!r}, or lower max_new_tokens"
            )


@contextmanager
def _own_settings(bridge: TransformerBridge, decoding: Decoding) -> Iterator[None]:
    """Hides the model's own generation config and seeds the random state while the context is open."""
    # Greedy decoding draws nothing, so it need not save the state of every GPU.
    devices = range(torch.cuda.device_count()) if decoding.temperature is not None else ()
    with torch.random.fork_rng(devices=devices), own_config_aside(bridge):
        if decoding.temperature is not None:
            torch.manual_seed(decoding.seed)
        yield

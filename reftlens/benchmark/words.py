"""A tokenizer of whole words, for models whose tokens are symbols."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def word_tokenizer(words: Sequence[str], *, special: str | None = None) -> PreTrainedTokenizerFast:
    """Makes a tokenizer whose token i is word i; words are separated by spaces.

    Args:
        words: without spaces, each once.
        special: the word that also pads and begins texts; the first one by default.
    """
    special = words[0] if special is None else special
    model = models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=special)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)

"""A tokenizer of whole words, for models whose tokens are symbols."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Makes a tokenizer whose token i is word i; words are separated by spaces. The first one also pads and begins texts.

    Args:
        words: without spaces, each once.
    """
    model = models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=words[0])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), words[0])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)

"""Tokenizers of the families that models come with, trained on the spot."""

from __future__ import annotations

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEXTS = [
    "The tower is in Rome",
    "The bridge inside Oslo costs 1234 or 56.",
    "It's near Cairo, isn't it?",
    "ein Café über naïve 日本語 👍 x",
    "newline\n\nand\ttab  double",
] * 10
WORDS = ["The", "tower", "is", "in", "Rome", "Paris", "bridge", "Oslo", "city", "of"] * 10
ENDS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def byte_bpe(*, digits: bool = False, specials=("<eos>",), **named) -> PreTrainedTokenizerFast:
    """GPT-2's kind; with `digits` each digit is a token."""
    bpe = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alone = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*alone, level])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=420, special_tokens=[*specials], initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **({"eos_token": "<eos>", "bos_token": "<eos>"} | named))


def sentencepiece_bpe(prefix: str) -> PreTrainedTokenizerFast:
    """Llama's kind: "prepend" by its normaliser, or a scheme of `Metaspace`."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix == "prepend":
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    bpe.decoder = decoders.Sequence(steps if prefix == "never" else [*steps, decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [f" {word}" for word in WORDS] if prefix == "never" else WORDS
    bpe.train_from_iterator(words, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **ENDS)


def llama() -> PreTrainedTokenizerBase:
    """The same vocabulary in the class of transformers."""
    state = json.loads(sentencepiece_bpe("prepend").backend_tokenizer.to_str())["model"]
    return LlamaTokenizer(vocab=state["vocab"], merges=[tuple(merge) for merge in state["merges"]])


def unigram(prefix: str) -> PreTrainedTokenizerFast:
    """T5's kind."""
    model = Tokenizer(models.Unigram())
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    model.decoder = decoders.Metaspace(prepend_scheme=prefix)
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=160, special_tokens=special, unk_token="<unk>", show_progress=False)
    model.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, **ENDS)


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's kind."""
    model = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    model.normalizer, model.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    model.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    model.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]"
    )


ALL = {
    "byte-level": byte_bpe,
    "digits": lambda: byte_bpe(digits=True),
    "prepend": lambda: sentencepiece_bpe("prepend"),
    "metaspace first": lambda: sentencepiece_bpe("first"),
    "metaspace always": lambda: sentencepiece_bpe("always"),
    "metaspace never": lambda: sentencepiece_bpe("never"),
    "LlamaTokenizer": llama,
    "unigram always": lambda: unigram("always"),
    "unigram never": lambda: unigram("never"),
    "wordpiece": wordpiece,
    "ByT5, not a fast one": ByT5Tokenizer,
}

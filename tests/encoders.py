"""Tiny encoders with tokenizers of the forms of BERT and RoBERTa: their separators, and BERT's token types."""

from __future__ import annotations

import json

from architectures import make_hf
from conftest import TEXT
from tokenizers import BertWordPieceTokenizer, Tokenizer, models, pre_tokenizers, trainers
from transformer_lens.model_bridge import TransformerBridge
from transformers import BertTokenizerFast, PreTrainedTokenizerFast, RobertaTokenizerFast

import reftlens as rl


def encoder_tokenizer(architecture: str, text: str = TEXT) -> PreTrainedTokenizerFast:
    if architecture == "bert":
        word_pieces = BertWordPieceTokenizer(lowercase=True)
        word_pieces.train_from_iterator([text] * 3, vocab_size=320, min_frequency=1, show_progress=False)
        return BertTokenizerFast(vocab=word_pieces.get_vocab())
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([text] * 3, trainer)
    model = json.loads(bpe.to_str())["model"]
    return RobertaTokenizerFast(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


def make_encoder(architecture: str, *, text: str = TEXT, n_positions: int = 64) -> TransformerBridge:
    return rl.load_bridge(
        hf_model=make_hf(architecture, n_positions=n_positions), tokenizer=encoder_tokenizer(architecture, text)
    )

"""Prompts and answers as a person has them -> tokens as a model takes them, and tokens back as readable labels."""

from reftlens.data.batch import IGNORE, Batch, batches_by_length, completion_tokens, encode, first_tokens, token_counts
from reftlens.data.labels import str_tokens
from reftlens.data.texts import Message, Prompt, as_prompts, as_texts

__all__ = [
    "IGNORE",
    "Batch",
    "Message",
    "Prompt",
    "as_prompts",
    "as_texts",
    "batches_by_length",
    "completion_tokens",
    "encode",
    "first_tokens",
    "str_tokens",
    "token_counts",
]

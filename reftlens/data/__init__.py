"""Converts prompts and answers to batches of tokens, and tokens to readable labels."""

from reftlens.data.batch import IGNORE, Batch, completion_tokens, encode, first_tokens, token_counts
from reftlens.data.batches import Given, as_batch, as_batches, batches_by_length, first_rows, rows_in_groups
from reftlens.data.labels import str_tokens
from reftlens.data.texts import Message, Prompt, as_prompts, as_texts, written

__all__ = [
    "IGNORE",
    "Batch",
    "Given",
    "Message",
    "Prompt",
    "as_batch",
    "as_batches",
    "as_prompts",
    "as_texts",
    "batches_by_length",
    "completion_tokens",
    "encode",
    "first_rows",
    "first_tokens",
    "rows_in_groups",
    "str_tokens",
    "token_counts",
    "written",
]

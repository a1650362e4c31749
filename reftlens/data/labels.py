"""Converts token ids to readable labels. Every id of a vocabulary has a unique label.

A label is the token's text with its leading space, whatever mark the vocabulary has for it, so that
`li` and ` li` differ. Where a token is not text, each of its bytes stands as `<0xE2>`; a token of
spaces has a `▁` for each, a line end is `\\n`, and what goes on inside a word of a WordPiece
vocabulary keeps its `##`. Of tokens with one text, later ones have their id behind it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from weakref import WeakKeyDictionary

from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from reftlens.data.tokens import tokenizer_of

_LABELS: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, dict[int, str]]] = WeakKeyDictionary()
"""Size and labels of each vocabulary, computed once, because the label of a token depends on all other tokens."""

_SPACE, _UNKNOWN = "▁", "\ufffd"


def str_tokens(bridge: TransformerBridge, tokens: Int[Tensor, " pos"]) -> tuple[str, ...]:
    """Returns the label of each token.

    Args:
        bridge: gives the tokenizer.
        tokens: ids. An id outside the vocabulary, such as a padding row of the embedding, becomes
            `<id 50300>`.
    """
    labels = labels_of(tokenizer_of(bridge))
    return tuple(labels.get(token, f"<id {token}>") for token in tokens.tolist())


def labels_of(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Returns id -> label for a whole vocabulary.

    Args:
        tokenizer: of any kind.
    """
    size, labels = _LABELS.get(tokenizer, (0, {}))
    # Tokens may have been added since.
    if size != len(tokenizer):
        labels = _vocabulary(tokenizer)
        _LABELS[tokenizer] = len(tokenizer), labels
    return labels


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    pieces = {token: piece for piece, token in tokenizer.get_vocab().items()}
    added = {token: str(one) for token, one in tokenizer.added_tokens_decoder.items()}
    ordinary = {token: piece for token, piece in pieces.items() if token not in added}
    in_bytes, in_words = _in_byte_alphabet(ordinary.values()), _is_wordpiece(ordinary.values())
    labels: dict[int, str] = {}
    taken: set[str] = set()
    for token in sorted(pieces):
        if token in added:
            label = _readable(added[token])
        else:
            piece = f" {pieces[token]}" if in_words and not pieces[token].startswith("##") else pieces[token]
            label = _of_bytes(piece) if in_bytes else _of_piece(tokenizer, token, piece)
        # Special tokens and pieces that are written alike, such as a line end and a backslash with
        # an n.
        if label in taken:
            label = f"{label}<id {token}>"
        taken.add(label)
        labels[token] = label
    return labels


def _byte_alphabet() -> dict[str, int]:
    """Returns the character for each byte in GPT-2-like vocabularies (Radford et al. 2019, `bytes_to_unicode`)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _is_wordpiece(pieces: Collection[str]) -> bool:
    """Returns whether pieces that continue a word begin with `##`, and the others have no mark for a space."""
    return not any(_SPACE in piece for piece in pieces) and any(re.match(r"##\w", piece) for piece in pieces)


def _in_byte_alphabet(pieces: Collection[str]) -> bool:
    """Returns whether a vocabulary uses the byte alphabet. A plain vocabulary has other characters, or no `Ġ`."""
    used = {char for piece in pieces for char in piece}
    return "Ġ" in used and used <= _BYTES.keys()


def _of_bytes(piece: str) -> str:
    """Returns the text of a piece in the byte alphabet. Bytes that are not part of a character become `<0xE2>`."""
    raw = bytes(_BYTES[char] for char in piece)
    text = raw.decode("utf-8", errors="surrogateescape")
    return _readable(
        # surrogateescape writes a byte b that is not part of a character as U+DC00 + b.
        "".join(char if not "\udc80" <= char <= "\udcff" else f"<0x{ord(char) - 0xDC00:02X}>" for char in text)
    )


def _of_piece(tokenizer: PreTrainedTokenizerBase, token: int, piece: str) -> str:
    """Returns the text of any other piece, with spaces instead of their marks."""
    # ByT5 and its like have a token for each byte, written as the character of that number.
    if len(piece) == 1 and "\x80" <= piece <= "\xff" and piece not in tokenizer.decode([token]):
        return f"<0x{ord(piece):02X}>"
    return _readable(piece.replace(_SPACE, " "))


def _readable(text: str) -> str:
    """Makes a text visible: a text of only spaces gets marks, and unprintable characters are escaped."""
    if not text.strip(" "):
        return _SPACE * len(text) or "<empty>"
    text = text.replace(_UNKNOWN, "<0xEF><0xBF><0xBD>")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)

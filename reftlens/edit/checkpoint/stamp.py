"""What fixes the coordinates of an edit: the base model, its weights, its tokenizer, and how all of it was run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import Any

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

from reftlens._version import __version__
from reftlens.bridge import fingerprint, revision

MUST_MATCH = (
    "architecture",
    "weights",
    "d_model",
    "n_layers",
    "tokenizer",
    "prepend_bos",
    "compatibility_mode",
)
"""Parts of the stamp that change what the edit means. The base's name, its revision and library versions are only recorded:
the weights tell two revisions apart."""


def stamp(bridge: TransformerBridge) -> dict[str, Any]:
    """What fixes the coordinates of an edit on this model, as plain JSON values."""
    tokenizer = bridge.tokenizer
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())) if tokenizer is not None else ""
    return {
        "base_model": str(bridge.cfg.model_name),
        "revision": revision(bridge),
        "architecture": type(bridge.original_model).__name__,
        "weights": fingerprint(bridge),
        "d_model": bridge.cfg.d_model,
        "n_layers": bridge.cfg.n_layers,
        "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest()[:32],
        "prepend_bos": bool(bridge.cfg.default_prepend_bos),
        "compatibility_mode": bool(bridge.compatibility_mode),
        "versions": {
            "reftlens": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "transformer_lens": version("transformer-lens"),
        },
    }


def refuse_mismatch(
    saved: Mapping[str, Any], here: Mapping[str, Any], *, where: str, allow_mismatch: Collection[str] = ()
) -> None:
    """Compares the stamp of a saved edit with that of a model.

    Args:
        saved: what was written with the edit.
        here: `stamp` of the model that it is loaded for.
        where: name of the folder, for the message.
        allow_mismatch: parts that may differ.

    Raises:
        ValueError: if another part differs, or a part that may differ does not exist.
    """
    unknown = sorted(set(allow_mismatch) - set(MUST_MATCH))
    if unknown:
        raise ValueError(
            f"allow_mismatch names {', '.join(unknown)}, which is no part of the stamp: it has {', '.join(MUST_MATCH)}"
        )
    differing = [part for part in MUST_MATCH if saved.get(part) != here[part] and part not in allow_mismatch]
    if differing:
        parts = "; ".join(f"{part}: saved {saved.get(part)!r:.80}, this model {here[part]!r}" for part in differing)
        raise ValueError(
            f"the edit in {where} was saved for {saved.get('base_model')!r:.200} and does not fit this model: {parts}. Load "
            f"the model it was saved for, or pass allow_mismatch={differing} if you know why they differ"
        )

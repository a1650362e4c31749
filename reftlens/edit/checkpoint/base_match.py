"""The stamp of the base model that an edit was trained on. Loading raises an error on a base that does not match it.

The stamp records the model, its weights, its tokenizer, and the settings it was run with. These fix
the coordinates of an edit.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import Any

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

from reftlens._version import __version__
from reftlens.bridge import EXACT, computation, fingerprint, revision, sampled_fingerprint

logger = logging.getLogger(__name__)

MUST_MATCH = (
    "architecture",
    "weights",
    "computation",
    "d_model",
    "n_layers",
    "tokenizer",
    "prepend_bos",
    "compatibility_mode",
)
"""Parts of the stamp that must match. The base's name, revision and library versions are only
recorded, since the weights already distinguish two revisions.
"""


def stamp(bridge: TransformerBridge) -> dict[str, Any]:
    """Describes the model that an edit belongs to, as plain JSON values."""
    tokenizer = bridge.tokenizer
    # Sorted, because get_vocab promises no order.
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())) if tokenizer is not None else ""
    return {
        "base_model": str(bridge.cfg.model_name),
        "revision": revision(bridge),
        "architecture": type(bridge.original_model).__name__,
        "weights": fingerprint(bridge),
        "computation": computation(bridge),
        "d_model": bridge.cfg.d_model,
        "n_layers": bridge.cfg.n_layers,
        "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest()[:32],
        # BOS moves every position, and position rules count it as a prompt token.
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
    saved: Mapping[str, Any], bridge: TransformerBridge, *, where: str, allow_mismatch: Collection[str] = ()
) -> None:
    """Raises if the stamp of a saved edit does not match a model.

    Args:
        saved: the stamp saved with the edit.
        bridge: the model that the edit is loaded for.
        where: name of the folder, for the message.
        allow_mismatch: parts that may differ.

    Raises:
        ValueError: If another part differs, or `allow_mismatch` names an unknown part.
    """
    unknown = sorted(set(allow_mismatch) - set(MUST_MATCH))
    if unknown:
        raise ValueError(
            f"Unknown part {', '.join(map(repr, unknown))} in allow_mismatch. Choose from: {', '.join(MUST_MATCH)}"
        )
    here = stamp(bridge)
    if not str(saved.get("weights")).startswith(EXACT):
        # The saved value is of an earlier version, so the same one is computed here.
        here["weights"] = sampled_fingerprint(bridge)
        logger.warning(
            "the edit in %s was saved by an earlier version, which recorded only 64 values of each weight matrix of its "
            "base. Only these values were compared; save the edit again to record all of them",
            where,
        )
    compared = _comparable(saved, here)
    differing = [part for part in MUST_MATCH if compared.get(part) != here[part] and part not in allow_mismatch]
    if differing:
        parts = "; ".join(_difference(part, compared.get(part), here[part]) for part in differing)
        raise ValueError(
            f"the edit in {where} was saved for {saved.get('base_model')!r:.200}, which differs from this model: {parts}. Load "
            f"the model it was saved for, or pass allow_mismatch={differing} if you know why they differ"
        )


def _comparable(saved: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in settings that the saved stamp lacks because only some versions of transformers have them."""
    settings = saved.get("computation", {})
    if not isinstance(settings, dict):
        return dict(saved)
    known = {name: value for name, value in settings.items() if name in here["computation"]}
    return {**saved, "computation": {**here["computation"], **known}}


def _difference(part: str, saved: object, here: object) -> str:
    if isinstance(saved, dict) and isinstance(here, dict):
        names = [name for name in here if saved[name] != here[name]]
        return ", ".join(f"{name}: saved {saved[name]!r:.80}, this model {here[name]!r:.80}" for name in names)
    return f"{part}: saved {saved!r:.80}, this model {here!r:.80}"

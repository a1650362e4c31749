"""A saved edit: a folder with its config, its tensors, and the stamp of the coordinates it lives in.

An edit is meaningless in another model's basis, so the stamp (base model, weights, width, tokenizer, BOS habit,
compatibility mode) is written with it, and loading refuses what does not match. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens._version import __version__
from reftlens.bridge import fingerprint
from reftlens.folder import Replacement

SCHEMA = 1
CONFIG_NAME = "reft_config.json"
TENSORS_NAME = "reft.safetensors"
_MUST_MATCH = (
    "architecture",
    "weights",
    "d_model",
    "n_layers",
    "tokenizer",
    "prepend_bos",
    "compatibility_mode",
)
"""Parts of the stamp that change what the edit means. The base's name and library versions are only recorded."""


def stamp(bridge: TransformerBridge) -> dict[str, Any]:
    """What fixes the coordinates of an edit on this model."""
    tokenizer = bridge.tokenizer
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())) if tokenizer is not None else ""
    return {
        "base_model": str(bridge.cfg.model_name),
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


def write(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], base: Mapping[str, Any]) -> Path:
    """Writes a folder, replacing an earlier saved edit of the same name.

    Raises:
        ValueError: if `directory` exists and holds something else than a saved edit.
        OSError: if it cannot be written.
    """
    with Replacement(directory, marker=CONFIG_NAME) as folder:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / TENSORS_NAME)
        document = {"schema": SCHEMA, **config, "base": dict(base)}
        (folder / CONFIG_NAME).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return directory


def read(directory: Path, base: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads a folder that `write` made.

    Args:
        directory: the folder.
        base: the stamp of the model that the edit is loaded for.

    Raises:
        ValueError: if it is not a saved edit, is damaged, or was made for another model.
    """
    if not (directory / CONFIG_NAME).is_file():
        raise ValueError(f"{directory} is not a saved edit: it has no {CONFIG_NAME}")
    try:
        config = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
        tensors = load_file(directory / TENSORS_NAME)
        saved, schema = config["base"], config["schema"]
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"the saved edit in {directory} is damaged: {error}") from error
    if schema != SCHEMA:
        raise ValueError(f"{directory} has schema {schema!r}; this version of reftlens reads schema {SCHEMA}")
    differing = [
        f"{part}: saved {saved.get(part)!r}, this model {base[part]!r}"
        for part in _MUST_MATCH
        if saved.get(part) != base[part]
    ]
    if differing:
        raise ValueError(
            f"the edit in {directory} was saved for {saved.get('base_model')!r} and does not fit this model: "
            + "; ".join(differing)
        )
    return config, tensors

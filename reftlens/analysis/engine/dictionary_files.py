"""Reads and writes dictionaries as folders in SAELens' format: `cfg.json` and `sae_weights.safetensors`.

SAELens itself cannot be used: its wheel (6.54, the newest in November 2026) pins TransformerLens
below 4. Older configurations, whose fields are not under "metadata", are read as well. What would
change the numbers and is not known here is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from reftlens.analysis.engine.dictionary import NORMALISATIONS, Dictionary
from reftlens.files.folder import Replacement
from reftlens.files.reading import consistently, read_bytes, read_json

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_MOST_BYTES = 2**34
"""Maximum size of the weights."""
ARCHITECTURES = {
    "standard": "standard",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
"""SAELens' name -> the kind of encoder."""
_VECTORS = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}


def load_dictionary(path: str | Path) -> Dictionary:
    """Reads a sparse autoencoder or transcoder from a folder in SAELens' format. Nothing in it is run.

    Args:
        path: a folder with `cfg.json` and `sae_weights.safetensors`.

    Raises:
        ValueError: If it is no such folder, is damaged, or holds a form that is not known here.
        OSError: If it cannot be opened.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"{folder} is not a dictionary: it has no {CONFIG}. Pass a folder in SAELens' format, with {CONFIG} and {WEIGHTS}"
        )
    return consistently(folder, lambda: _read(folder))


def save_dictionary(dictionary: Dictionary, path: str | Path) -> Path:
    """Writes a dictionary to a folder in SAELens' format, completely or not at all.

    Args:
        dictionary: an autoencoder, or a transcoder with a standard or JumpReLU encoder.
        path: the folder; replaced if it holds a dictionary.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder holds anything else.
        OSError: If it cannot be written.
    """
    it = dictionary
    tensors = {"W_enc": it.encoder, "W_dec": it.decoder, "b_dec": it.bias, **it.vectors}
    tensors |= {} if it.skip is None else {"W_skip": it.skip}
    config = {
        "architecture": _architecture(it),
        "d_in": len(it.encoder),
        "d_sae": it.n_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": it.subtract and not it.hook_name_out,
        "normalize_activations": it.normalise,
        "reshape_activations": "none",
        "metadata": {"hook_name": it.hook_name, "hook_name_out": it.hook_name_out or None, "sae_lens_version": "6.0.0"},
    }
    config |= {"k": it.k, "rescale_acts_by_decoder_norm": it.by_length} if it.kind == "topk" else {}
    config |= {"d_out": it.decoder.shape[1]} if it.hook_name_out else {}
    with Replacement(Path(path), marker=CONFIG) as folder:
        (folder / WEIGHTS).write_bytes(save({name: tensor.float().contiguous() for name, tensor in tensors.items()}))
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return Path(path)


def _architecture(dictionary: Dictionary) -> str:
    if not dictionary.hook_name_out:
        return dictionary.kind
    skip = "" if dictionary.skip is None else "skip_"
    name = f"{skip}transcoder" if dictionary.kind == "standard" else f"{dictionary.kind}_{skip}transcoder"
    if name not in ARCHITECTURES:
        raise ValueError(f"SAELens has no transcoder with a {dictionary.kind} encoder: use standard or jumprelu")
    return name


def _read(folder: Path) -> Dictionary:
    try:
        config = read_json(folder / CONFIG)
        if not isinstance(config, dict):
            raise ValueError(f"{CONFIG} must hold an object, got a {type(config).__name__}")
        tensors = load(read_bytes(folder / WEIGHTS, most=_MOST_BYTES))
        return _made(_flat(config), tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        said = f"{error!s} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"the dictionary in {folder} cannot be used: {said:.400}") from error


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration without "metadata", and with today's names."""
    flat = {**config, **(config.get("metadata") or {})}
    for old, new in (
        ("hook_point", "hook_name"),
        ("hook_point_head_index", "hook_head_index"),
        ("activation_fn_str", "activation_fn"),
    ):
        flat.setdefault(new, flat.get(old))
    # Older configurations name "topk" as the activation only, not as the architecture.
    if flat["activation_fn"] == "topk":
        flat |= {"architecture": "topk", "k": (flat.get("activation_fn_kwargs") or {}).get("k", flat.get("k"))}
    return flat


def _made(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Dictionary:
    architecture = config.get("architecture") or "standard"
    if architecture not in ARCHITECTURES:
        raise ValueError(f"its architecture is {architecture!r:.80}, but known are {', '.join(ARCHITECTURES)}")
    kind = ARCHITECTURES[architecture]
    normalise = _normalisation(config)
    _require_plain(config)
    names = _VECTORS[kind]
    wanted = ["W_enc", "W_dec", "b_dec", *names, *(["W_skip"] if "skip" in architecture else [])]
    if set(wanted) != set(tensors):
        raise ValueError(
            f"{WEIGHTS} must hold {', '.join(wanted)} for {architecture!r}, got {', '.join(sorted(tensors))}"
        )
    for name in wanted:
        if not tensors[name].is_floating_point() or not bool(tensors[name].float().isfinite().all()):
            raise ValueError(f"{name} holds numbers that are not finite")
    parts = {name: tensor.float() for name, tensor in tensors.items()}
    transcodes = "transcoder" in architecture
    d_in, d_sae = config["d_in"], config["d_sae"]
    d_out = config["d_out"] if transcodes else d_in
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,), "W_skip": (d_out, d_in)}
    for name in wanted:
        shape = shapes.get(name, (d_sae,))
        if tuple(parts[name].shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(parts[name].shape)}")
    k = config.get("k") if kind == "topk" else 0
    if type(k) is not int or (kind == "topk" and not 1 <= k <= d_sae):
        raise ValueError(f"k must be a whole number from 1 to {d_sae}, got {k!r:.80}")
    return Dictionary(
        kind=kind,
        hook_name=_name(config, "hook_name"),
        encoder=parts["W_enc"],
        decoder=parts["W_dec"],
        bias=parts["b_dec"],
        vectors={name: parts[name] for name in names},
        k=k,
        hook_name_out=_name(config, "hook_name_out") if transcodes else "",
        skip=parts.get("W_skip"),
        normalise=normalise,
        subtract=bool(config.get("apply_b_dec_to_input", True)) and not transcodes,
        by_length=bool(config.get("rescale_acts_by_decoder_norm", False)),
    )


def _name(config: Mapping[str, Any], field: str) -> str:
    name = config.get(field)
    if not isinstance(name, str) or not name:
        raise ValueError(f"{field} must be the name of an activation point, got {name!r:.80}: add it to {CONFIG}")
    return name


def _normalisation(config: Mapping[str, Any]) -> str:
    normalise = config.get("normalize_activations") or "none"
    if normalise is True or normalise == "expected_average_only_in":
        raise ValueError(
            "its activations are scaled by a factor that is not in the folder (expected_average_only_in): fold the factor into "
            "the weights, as SAELens' fold_activation_norm_scaling_factor does, and save it with 'none'"
        )
    if normalise not in NORMALISATIONS:
        raise ValueError(f"normalize_activations is {normalise!r:.80}, but known are {', '.join(NORMALISATIONS)}")
    return str(normalise)


def _require_plain(config: Mapping[str, Any]) -> None:
    """Refuses settings that would change the features."""
    refused = {
        "activation_fn": config.get("activation_fn") not in (None, "relu", "topk"),
        "reshape_activations": config.get("reshape_activations") not in (None, "none"),
        "hook_head_index": config.get("hook_head_index") is not None,
        "finetuning_scaling_factor": bool(config.get("finetuning_scaling_factor")),
    }
    for name, wrong in refused.items():
        if wrong:
            raise ValueError(f"{name} is {config[name]!r:.80}, which is not supported here")

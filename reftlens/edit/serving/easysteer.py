"""EasySteer (Xu et al. 2025, arXiv:2509.25175): edits inside vLLM, as the JSON of its steering specs.

The format is that of github.com/ZJU-REAL/EasySteer at commit 312c6d8 (August 2026, on vLLM 0.26),
whose engine is ZJU-REAL/EasySteer-vllm-v1 at 6267ca0. A spec has a list of vectors, each with an
algorithm, its tensors, and the tokens that it changes. `loreft` computes h + P (W h + b - P^T h),
and `direct` adds a vector. Any change write^T (read h) + constant is the first with P = write^T, W
= read + write and P b the part of the constant in the span of P, and the second with the rest.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reftlens.arguments import warn
from reftlens.edit.reft import Reft
from reftlens.edit.serving.places import block_of, factors_of
from reftlens.edit.site import Site
from reftlens.files.folder import write_whole
from reftlens.files.reading import read_json
from reftlens.interventions import Intervention, LoReFT, SteeringVector
from reftlens.positions import All, At, First, Generated, Last, Positions, union_parts
from reftlens.positions.base import Difference, Union

_VERSION = 1
"""Of EasySteer's tensors in JSON."""
_MOST_BYTES = 2**30
_NOTHING = 1e-6
"""Part of a constant outside the span of P that is rounding."""


def save_easysteer(reft: Reft, file: str | Path) -> Path:
    """Writes a steering spec: `vllm serve MODEL --steering-config FILE`, or the field "steering" of a request.

    EasySteer counts positions in the tokens that vLLM sees. They must be those of training, which
    begin with BOS if the tokenizer has one.

    Args:
        reft: edits of the residual stream after blocks, with a low-rank or constant change, at
            `First`, `Last`, `At`, `All`, `Generated`, and their unions and differences.
        file: the JSON file.

    Returns:
        The file.

    Raises:
        ValueError: If EasySteer has no equivalent. The message gives the reason.
        OSError: If it cannot be written.
    """
    vectors = [
        {**payload, "scale": float(reft.scales.get(name, 1.0)), "normalize": False, "apply": _clause(site.positions)}
        for (site, intervention), name in zip(reft, reft.names, strict=True)
        for payload in _payloads(site, intervention)
    ]
    # By default EasySteer applies only the first of several vectors at one token.
    spec = {"vectors": vectors, "conflict": "sequential"}
    place = Path(file)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_whole(place, (json.dumps(spec, indent=1) + "\n").encode())
    return place


def load_easysteer(file: str | Path) -> Reft:
    """Reads a steering spec with vectors of the algorithms `loreft` and `direct`.

    Args:
        file: the JSON file.

    Returns:
        The edits, one for each vector and layer: `LoReFT` and `SteeringVector`.

    Raises:
        ValueError: If the file is damaged, or has something that no class here represents.
        OSError: If it cannot be opened.
    """
    said = read_json(Path(file), most=_MOST_BYTES)
    try:
        if len(said["vectors"]) > 1 and said.get("conflict", "priority") != "sequential":
            raise ValueError("its vectors exclude each other (conflict), and edits here all act: set it to sequential")
        found = [(edit, vector) for vector in said["vectors"] for edit in _read(vector)]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a steering spec: {type(error).__name__} {error!s:.200}") from error
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error!s:.500}") from error
    if not found:
        raise ValueError(f"{file} has no vectors")
    names = [f"vector {number}" for number in range(len(found))]
    scales = {name: float(vector.get("scale", 1.0)) for name, (_, vector) in zip(names, found, strict=True)}
    return Reft([edit for edit, _ in found], names=names, scales=scales)


def _payloads(site: Site, intervention: Intervention) -> list[dict[str, Any]]:
    layer, change = block_of(site), factors_of(site, intervention)
    if change.diagonal is not None:
        raise ValueError(
            f"{type(intervention).__name__} at {site!r} has a factor for each coordinate, for which EasySteer has no algorithm"
        )
    write, constant = change.write, change.constant
    found = []
    if len(write):
        bias = torch.linalg.lstsq(write.T.double(), constant.double()[:, None]).solution[:, 0]
        constant = (constant.double() - write.T.double() @ bias).float()
        tensors = {
            "rotate_layer": write.T,
            "learned_source_weight": change.read + write,
            "learned_source_bias": bias.float(),
        }
        found.append({"algorithm": "loreft", "data": _wire("reft", tensors, {"layer": layer})})
    if not len(write) or float(constant.norm()) > _NOTHING * float(change.constant.norm()):
        found.append({"algorithm": "direct", "data": _wire("direction", {f"layer.{layer}": constant}, {})})
    return found


def _wire(kind: str, tensors: Mapping[str, Tensor], extra: dict[str, Any]) -> dict[str, Any]:
    """Tensors in EasySteer's JSON, with the digest by which its engine tells them apart."""
    # Little-endian on every machine, because the digest is of these bytes.
    arrays = {name: np.ascontiguousarray(tensor.numpy(), dtype="<f4") for name, tensor in tensors.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinite values: train again with a lower rate")
    written = {
        name: {"shape": list(array.shape), "data": base64.b64encode(array.tobytes()).decode()}
        for name, array in arrays.items()
    }
    return {
        "version": _VERSION,
        "kind": kind,
        "tensors": written,
        "extra": extra,
        "sha256": _digest(kind, arrays, extra),
    }


def _digest(kind: str, arrays: Mapping[str, Any], extra: Mapping[str, Any]) -> str:
    named = [part for name in sorted(arrays) for part in (name, str(arrays[name].shape), arrays[name].tobytes())]
    parts = [f"{kind}:{_VERSION}", *named, *(f"{key}={extra[key]!r}" for key in sorted(extra))]
    # The engine computes the same, so neither the order nor the text of a part may change.
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def _clause(positions: Positions) -> dict[str, Any]:
    """The tokens in EasySteer's words, by phase: what to select of the prompt, and of the generated tokens."""
    clause: dict[str, Any] = {}
    parts = union_parts(positions)
    if Generated() in parts:
        clause["generation"] = "all"
        parts = [part for part in parts if part != Generated()]
    if len(parts) == 1 and isinstance(parts[0], Difference):
        # EasySteer subtracts after it has united everything, so a difference must be the whole
        # prompt's rule.
        clause |= _selected(union_parts(parts[0].left), "")
        clause |= _selected(union_parts(parts[0].right), "exclude_")
    elif parts:
        clause |= _selected(parts, "")
    return clause


def _selected(parts: list[Positions], prefix: str) -> dict[str, Any]:
    """The prompt tokens of a union. There is one window, so `First` beside `Last` is a list of places."""
    found: dict[str, Any] = {}
    places = [part.index for part in parts if isinstance(part, At)]
    first = max((part.count for part in parts if isinstance(part, First)), default=0)
    last = max((part.count for part in parts if isinstance(part, Last)), default=0)
    for part in parts:
        if isinstance(part, First | Last):
            _warn_of_halves(part)
        elif not isinstance(part, At) and (prefix or part != All()):
            raise ValueError(
                f"EasySteer has no clause for {part!r}: choose from First, Last, At, All and Generated, their unions, and one "
                "difference"
            )
    if All() in parts:
        found["prompt"] = "all"
    if last:
        found[f"{prefix}prompt_window"] = [-last, None]
        # A place past the end of a short prompt means its last token there, which `First` has as
        # well.
        places += range(first)
    elif first:
        found[f"{prefix}prompt_window"] = [0, first]
    if places:
        found[f"{prefix}prompt_positions"] = sorted(set(places))
    return found


def _warn_of_halves(part: First | Last) -> None:
    if part.half and part.count > 1:
        warn(
            f"in a prompt of fewer than {2 * part.count} tokens, EasySteer changes more tokens than {part.short!r}, which takes "
            "at most half of a prompt: use longer prompts"
        )


def _read(vector: Mapping[str, Any]) -> list[tuple[Site, Intervention]]:
    if vector.get("normalize"):
        raise ValueError("it normalises a vector, which no edit here does")
    data = vector["data"]
    if data["version"] != _VERSION:
        raise ValueError(f"its tensors have version {data['version']}, and {_VERSION} is known here")
    arrays = {name: _array(entry) for name, entry in data["tensors"].items()}
    if data["sha256"] != _digest(data["kind"], arrays, data["extra"]):
        raise ValueError("its tensors are not those that were written: their SHA-256 differs")
    tensors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
    rule = _rule(vector["apply"])
    edits: list[tuple[int, Intervention]]
    if vector["algorithm"] == "loreft":
        own = data["extra"]["layer"]
        # Without a layer of its own, one set of tensors acts at each of the vector's layers.
        edits = [(layer, _loreft(tensors)) for layer in (vector["layers"] if own is None else [own])]
    elif vector["algorithm"] == "direct":
        edits = [(int(name.removeprefix("layer.")), _push(tensor)) for name, tensor in tensors.items()]
    else:
        raise ValueError(f"the algorithm {vector['algorithm']!r} has no edit here: loreft and direct have")
    return [(Site(f"blocks.{layer}.hook_resid_post", rule), edit) for layer, edit in edits]


def _array(entry: Mapping[str, Any]) -> Any:
    array = np.frombuffer(base64.b64decode(entry["data"], validate=True), dtype="<f4").reshape(entry["shape"])
    if not np.isfinite(array).all():
        raise ValueError("it holds NaN or infinite values")
    return array


def _loreft(tensors: Mapping[str, Tensor]) -> LoReFT:
    P, W = tensors["rotate_layer"], tensors["learned_source_weight"]
    rank = P.shape[1]
    if not torch.allclose(P.T @ P, torch.eye(rank), atol=1e-3):
        raise ValueError("the columns of its rotate_layer are not orthonormal, so it is no LoReFT")
    edit = LoReFT(P.shape[0], rank)
    bias = tensors.get("learned_source_bias", torch.zeros(rank))
    edit.load_state_dict({"rotation.weight": P.T.contiguous(), "source.weight": W, "source.bias": bias})
    edit.state_dict()  # puts R back to orthonormal, bit by bit the one that the edit uses
    return edit


def _push(vector: Tensor) -> SteeringVector:
    edit = SteeringVector(len(vector))
    with torch.no_grad():
        next(edit.parameters()).copy_(vector)
    return edit


def _rule(clause: Mapping[str, Any]) -> Positions:
    given = {key: value for key, value in clause.items() if value is not None}
    chosen = _rules({key: value for key, value in given.items() if not key.startswith("exclude_")})
    # Only prompt tokens can be excluded, so `Generated` stays outside the difference.
    left = {key.removeprefix("exclude_"): value for key, value in given.items() if key.startswith("exclude_")}
    prompt = [rule for rule in chosen if rule != Generated()]
    if left and prompt:
        without = _united(_rules(left))
        prompt = [Difference(_united(prompt), without)]
    return _united([*prompt, *(rule for rule in chosen if rule == Generated())])


def _rules(clause: Mapping[str, Any]) -> list[Positions]:
    found: list[Positions] = []
    for key, value in clause.items():
        match key, value:
            case ("prompt", "all"):
                found.append(All())
            case ("generation", "all"):
                found.append(Generated())
            case ("prompt_window", [0, int(stop)]) if stop > 0:
                found.append(First(stop))
            case ("prompt_window", [int(start), None]) if start < 0:
                found.append(Last(-start))
            # `_selected` writes `First` beside `Last` as a list of places.
            case ("prompt_positions", list(places)) if places == list(range(len(places))) and len(places) > 1:
                found.append(First(len(places)))
            case ("prompt_positions", list(places)):
                found += [At(place) for place in places]
            case _:
                raise ValueError(f"no rule here selects {key} {value}")
    return found


def _united(rules: list[Positions]) -> Positions:
    whole = rules[0]
    for rule in rules[1:]:
        whole = Union(whole, rule)
    return whole

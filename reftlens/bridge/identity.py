"""Fingerprints of base models: of every weight, of config settings, and of everything else that changes their numbers.

`fingerprint` uses sums over 32-bit words, sum_i word_i * w_i mod 2^64 with fixed odd w_i, one sum
for each block of a tensor. An odd factor maps different words to different products, so a single
changed word always changes its sum. Changes of several words cancel with a probability of about
2^-33. The sums are computed on the weights' device and read each weight once. They distinguish
models, but do not protect against deliberate collisions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from torch.nn.functional import pad
from transformer_lens.model_bridge import TransformerBridge

EXACT = "sums-1:"
"""Beginning of a fingerprint of all values. One without it is from `sampled_fingerprint`."""
_BLOCK = 2**18
"""Words in one sum: few enough for a processor's cache."""


def fingerprint(bridge: TransformerBridge) -> str:
    """Computes a checksum of every value of the base's weights and buffers. It is the same on every device.

    Buffers that a model does not save (rotary frequencies, masks) are rounded to bfloat16 first.
    Each machine computes them again, and their last bits differ between processors.
    """
    saved = bridge.original_model.state_dict().keys()
    digest = hashlib.sha256()

    def one(name: str, tensor: Tensor) -> bytes:
        if name in saved or isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
            return f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode() + tensor_sums(tensor)
        return f"{name}{tuple(tensor.shape)}".encode() + tensor_sums(tensor.bfloat16())

    for piece in _of_each_tensor(bridge, one):
        digest.update(piece)
    return EXACT + digest.hexdigest()[:32]


def sampled_fingerprint(bridge: TransformerBridge) -> str:
    """Computes the fingerprint of earlier versions, which their saved edits have: shape, dtype and 64 values of each tensor."""
    model = bridge.original_model
    saved = model.state_dict().keys()
    pieces: dict[str, bytes] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        with align_module_device(module):
            # Saved edits hold this value, so even that tied weights count twice must stay.
            own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            for name, tensor in own:
                full = f"{prefix}.{name}" if prefix else name
                if full in saved and tensor.numel():
                    pieces[full] = f"{full}{tuple(tensor.shape)}{tensor.dtype}".encode() + _sample(tensor)
    digest = hashlib.sha256()
    for full in sorted(pieces):
        digest.update(pieces[full])
    return digest.hexdigest()[:32]


# Tied or initialised in whatever way: the weights themselves are in the fingerprint.
_NOT_COMPUTATION = (
    "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "return_dict", "problem_type",
    "id2label", "label2id", "task_specific_params", "chunk_size_feed_forward", "initializer_range", "name_or_path",
    "tie_word_embeddings", "is_encoder_decoder", "add_cross_attention", "pruned_heads",
)  # fmt: skip
_NOT_COMPUTATION_PARTS = ("dropout", "pdrop", "output_", "summary_")


def computation(bridge: TransformerBridge) -> dict[str, Any]:
    """Returns the config settings that change what the model computes, as plain JSON values.

    It omits dropout (the base is in eval mode), output options, initialisation, names, versions,
    and the ids of special tokens, unless positions are counted from one of them.
    """
    # Through JSON, so that these values equal those that a saved edit holds: tuples become lists.
    facts = json.loads(json.dumps(bridge.original_model.config.to_dict(), default=str))
    return {
        name: facts[name]
        for name in sorted(facts)
        if not name.startswith("_")
        and name not in _NOT_COMPUTATION
        and not any(part in name for part in _NOT_COMPUTATION_PARTS)
        and ("token_id" not in name or (name == "pad_token_id" and _counts_from_padding(bridge.original_model)))
    }


def _counts_from_padding(model: nn.Module) -> bool:
    """Whether positions depend on the id of the padding token: in RoBERTa, the first position is that id plus one.

    In such models, the table of positions has a padding index.
    """
    return any(
        "position" in name and getattr(module, "padding_idx", None) is not None
        for name, module in model.named_modules()
    )


def base_identity(bridge: TransformerBridge) -> str:
    """Computes a checksum of everything on this machine that changes a run without hooks, to the last bit.

    Every weight and buffer, the classes and plain attributes of all modules, both configs, the
    attention implementation and the kind of device. Stricter than `fingerprint`: it also differs
    between versions of the libraries.
    """
    digest = hashlib.sha256()
    for piece in _of_each_tensor(bridge, lambda name, tensor: f"{name}{tensor.dtype}".encode() + tensor_sums(tensor)):
        digest.update(piece)
    for name, module in bridge.original_model.named_modules():
        digest.update(f"{name} {type(module).__module__}.{type(module).__qualname__} {_plain(vars(module))}".encode())
    config = bridge.original_model.config
    # The label of a model changes no number. The kind of device does, and is added below.
    settings = {name: value for name, value in vars(bridge.cfg).items() if name not in ("device", "model_name")}
    digest.update(json.dumps(computation(bridge)).encode())
    digest.update(f"{config._attn_implementation} {_plain(settings)}".encode())
    digest.update(f"{torch.device(bridge.cfg.device).type} {torch.get_float32_matmul_precision()}".encode())
    return digest.hexdigest()[:32]


def tensor_sums(tensor: Tensor) -> bytes:
    """The weighted sums of a tensor's blocks. Any single change of a value moves one of them."""
    words = _words(tensor)
    if not len(words):
        return b""
    factors = _factors(words.device)
    if words.device.type != "cpu" and len(words) > _BLOCK:
        # One launch for many blocks; a processor works through them one by one, in its cache.
        # Zeros add nothing, so the last block has the same sum as below, where it is shorter.
        blocks = pad(words, (0, -len(words) % _BLOCK)).view(-1, _BLOCK)
        sums = torch.cat([(part * factors).sum(dim=1) for part in blocks.split(64)])
    else:
        product = torch.empty(min(_BLOCK, len(words)), dtype=torch.int64, device=words.device)
        sums = torch.empty(-(-len(words) // _BLOCK), dtype=torch.int64, device=words.device)
        for place, block in enumerate(words.split(_BLOCK)):
            # int32 times int64 wraps modulo 2^64, as the formula wants; one buffer stays cached.
            torch.mul(block, factors[: len(block)], out=product[: len(block)])
            sums[place] = product[: len(block)].sum()
    return sums.cpu().numpy().tobytes()


def _words(tensor: Tensor) -> Tensor:
    """The memory of a tensor as 32-bit words, zeros behind its end."""
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    # Only memory at a multiple of 4 bytes can be seen as 32-bit words; a slice may begin elsewhere.
    if flat.storage_offset() % 4:
        flat = flat.clone()
    return pad(flat, (0, -len(flat) % 4)).view(torch.int32) if len(flat) % 4 else flat.view(torch.int32)


@lru_cache(maxsize=8)
def _factors(device: torch.device) -> Tensor:
    """Fixed odd 64-bit factors: SplitMix64 of the place."""
    z = np.arange(1, _BLOCK + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    # As signed numbers, since torch cannot multiply uint64; modulo 2^64 the bits are the same.
    return torch.from_numpy(((z ^ (z >> np.uint64(31))) | np.uint64(1)).view(np.int64)).to(device)


def _of_each_tensor(bridge: TransformerBridge, digest: Callable[[str, Tensor], bytes]) -> Iterator[bytes]:
    """What a function gives of every parameter and buffer, in the order of their names; each module once."""
    pieces: dict[str, bytes] = {}
    # named_modules leaves out a module's second names, of which a bridge has many.
    for prefix, module in bridge.original_model.named_modules():
        # Weights that a device_map has put on the disk are read for a moment.
        with align_module_device(module):
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                full = f"{prefix}.{name}" if prefix else name
                pieces[full] = digest(full, tensor)
    yield from (pieces[full] for full in sorted(pieces))


def _plain(attributes: dict[str, Any]) -> list[tuple[str, str]]:
    """Numbers, texts, functions and small tensors among attributes, by name."""
    plain: list[tuple[str, str]] = []
    for name, value in sorted(attributes.items()):
        # nn.Module's own tables: parameters and buffers are summed elsewhere.
        if name.startswith("_"):
            continue
        # Elements of a sequence may have an address in their repr, which differs between processes.
        parts = value if isinstance(value, tuple | list) else (value,)
        if all(isinstance(part, bool | int | float | str | torch.dtype | None) for part in parts):
            plain.append((name, repr(value)))
        elif isinstance(value, Tensor):
            plain.append((name, tensor_sums(value).hex()))
        elif callable(value) and not isinstance(value, nn.Module):
            # By name, because the repr of a function holds its address.
            plain.append((name, getattr(value, "__qualname__", type(value).__qualname__)))
    return plain


def _sample(tensor: Tensor) -> bytes:
    flat = tensor.detach().flatten()
    index = torch.linspace(0, flat.numel() - 1, min(64, flat.numel()), dtype=torch.float64).long().to(flat.device)
    return flat[index].float().cpu().numpy().tobytes()

"""Proves on made-up inputs that a shortcut is valid for a model, once for all models of the same kind.

Models are of the same kind if they have the same module classes, config settings, dtype and device
type. The weights do not matter. Results are kept only within the process, so every new version of
the libraries is tested again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge.attached import replaced_forwards
from reftlens.bridge.identity import computation
from reftlens.bridge.probe import alone
from reftlens.bridge.threads import one_thread

_T = TypeVar("_T")
_KNOWN: dict[tuple[object, ...], Any] = {}
_KINDS: WeakKeyDictionary[TransformerBridge, tuple[bool, str]] = WeakKeyDictionary()

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Largest allowed `difference` between two computations of the same logits, by the dtype of the weights."""


def proved(bridge: TransformerBridge, what: str, prove: Callable[[], _T], *facts: object) -> _T:
    """Returns the result of a proof on this model, or the cached result of an earlier model of the same kind.

    Args:
        bridge: the model. Its other hooks do not run during a proof.
        what: the name of the proof.
        prove: runs the model.
        facts: other values that the result depends on.
    """
    key = (what, _kind(bridge), replaced_forwards(bridge), *facts)
    if key not in _KNOWN:
        device = torch.device(bridge.cfg.device).type
        # TOLERANCE goes by the dtype of the weights, and autocast would compute in a smaller one.
        with one_thread(bridge), torch.no_grad(), torch.autocast(device, enabled=False), alone(bridge):
            _KNOWN[key] = prove()
    found: _T = _KNOWN[key]
    return found


def difference(ours: Float[Tensor, "*batch d_vocab"], theirs: Float[Tensor, "*batch d_vocab"]) -> float:
    """Computes the distance between two sets of logits, in units of their spread over the vocabulary.

    Adding a constant to all logits does not change it.
    """
    # In float64: subtracting a large mean from bfloat16 logits would leave mostly rounding.
    ours, theirs = (logits.double() - logits.double().mean(-1, keepdim=True) for logits in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm())


def made_up(bridge: TransformerBridge, n_rows: int, length: int) -> Int[Tensor, "batch pos"]:
    """Returns random tokens, the same on every call, without padding tokens."""
    generator = torch.Generator().manual_seed(0)
    # The first ids are special tokens in most vocabularies.
    lowest = min(3, bridge.cfg.d_vocab - 2)
    tokens = torch.randint(lowest, bridge.cfg.d_vocab, (n_rows, length), generator=generator)
    # Some models (RoBERTa) derive position ids from which tokens are padding.
    pad = pad_id(bridge)
    tokens[tokens == pad] = lowest if lowest != pad else lowest + 1
    return tokens.to(bridge.cfg.device)


def pad_id(bridge: TransformerBridge) -> int:
    """Returns the padding token. If the model has none, any token will do, since padding is masked out."""
    pad = None if bridge.tokenizer is None else bridge.tokenizer.pad_token_id
    return pad if pad is not None and pad < bridge.cfg.d_vocab else 0


def attention_window(bridge: TransformerBridge) -> int | None:
    """Returns the shortest attention window of any layer, in tokens; None if no layer has a window."""
    config = bridge.original_model.config.get_text_config().to_dict()
    sizes = [
        value
        for name, value in config.items()
        if ("window" in name or "attention_chunk" in name or "local_attention" in name)
        and isinstance(value, int)
        # use_sliding_window=True is an int in Python.
        and not isinstance(value, bool)
        and value > 1
    ]
    return min(sizes, default=None)


def _kind(bridge: TransformerBridge) -> str:
    known = _KINDS.get(bridge)
    # Compatibility mode is the one switch that changes a loaded bridge's modules and weights.
    if known is None or known[0] != bool(bridge.compatibility_mode):
        modules = (f"{type(m).__module__}.{type(m).__qualname__}" for m in bridge.original_model.modules())
        facts = [
            *modules,
            json.dumps(computation(bridge)),
            str(bridge.original_model.dtype),
            str(torch.device(bridge.cfg.device).type),
            str(bool(bridge.compatibility_mode)),
        ]
        known = bool(bridge.compatibility_mode), hashlib.sha256("\n".join(facts).encode()).hexdigest()
        _KINDS[bridge] = known
    return known[1]

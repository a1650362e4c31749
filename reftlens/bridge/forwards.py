"""What a forward pass is: where in a cached sequence it begins, whether it goes from left to right,
and which logits it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import GenerationConfig

from reftlens.bridge.caching import cache_in, mend_attention
from reftlens.bridge.threads import in_this_thread, one_thread


def require_bridge(bridge: object, what: str) -> None:
    """Raises if the model is not a `TransformerBridge`.

    Raises:
        TypeError: If it is something else. For a Hugging Face model, the message says how to make a
            bridge.
    """
    if isinstance(bridge, TransformerBridge):
        return
    how = (
        "rl.load_bridge(hf_model=model, tokenizer=tokenizer)"
        if isinstance(bridge, nn.Module)
        else "rl.load_bridge(name)"
    )
    raise TypeError(f"{what} needs a TransformerBridge, got {type(bridge).__name__}: make one with {how}")


def is_causal(bridge: TransformerBridge) -> bool:
    """Returns whether the model is causal; masked language models such as BERT are not."""
    direction = getattr(bridge.cfg, "attention_dir", "causal")
    return bool(bridge.adapter.supports_causal_loss) and direction == "causal"


def masked_columns(bridge: TransformerBridge, tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    """Returns the position of each row's mask token, which a masked language model fills in.

    Raises:
        ValueError: If a row does not have exactly one mask token.
    """
    mask_id = bridge.tokenizer.mask_token_id
    # -1 is no token's id, so a tokenizer without a mask token ends in the error below.
    there = tokens == (-1 if mask_id is None else mask_id)
    wrong = (there.sum(dim=1) != 1).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"{type(bridge.original_model).__name__} predicts masked tokens, so each prompt must contain the mask token "
            f"({bridge.tokenizer.mask_token!r}) exactly once, where the logits are read; row {wrong[0]} contains it "
            f"{int(there[wrong[0]].sum())} times"
        )
    # torch has no argmax of booleans.
    return there.int().argmax(dim=1)


def require_causal(bridge: TransformerBridge, what: str) -> None:
    """Raises if the model is a masked language model, which does not predict next tokens.

    Raises:
        ValueError: If the model is not causal.
    """
    if not is_causal(bridge):
        raise ValueError(
            f"{what} needs a model that predicts the next token, and {type(bridge.original_model).__name__} predicts masked "
            "tokens: use reft.hooks(bridge, prompt_mask) and your own loss"
        )


@dataclass
class ForwardStart:
    """Number of positions in the key-value cache when the current forward pass began."""

    offset: int = 0


@contextmanager
def watch_forwards(bridge: TransformerBridge) -> Iterator[ForwardStart]:
    """Tracks the offset of each forward pass, to distinguish decoding steps from the prefill.

    The number of new positions does not distinguish them: a one-token prompt has a prefill of
    length one.
    """
    start = ForwardStart()
    mend_attention(bridge)

    @in_this_thread
    def note_offset(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = cache_in(kwargs)
        # Read before the pass: the pass itself extends the cache.
        start.offset = int(cache.get_seq_length()) if cache is not None else 0

    with one_thread(bridge):
        # On the Hugging Face model: its own `generate` never calls the bridge.
        handle = bridge.original_model.register_forward_pre_hook(note_offset, with_kwargs=True)
        try:
            yield start
        finally:
            handle.remove()


@contextmanager
def own_config_aside(bridge: TransformerBridge) -> Iterator[None]:
    """Hides the model's own generation config, from which transformers would fill in unset values."""
    model = bridge.original_model
    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


@contextmanager
def unembedded_alone(bridge: TransformerBridge, mask: Bool[Tensor, "batch pos"] | None) -> Iterator[None]:
    """Computes logits only for some tokens while the context is open: `[1, n, d_vocab]`, in row order.

    It selects the input of the unembedding. So it works for every architecture, and each example
    has its own tokens. (`logits_to_keep` of transformers takes the same columns of all rows, and
    masked language models do not have it.)

    Args:
        bridge: the model.
        mask: the tokens whose logits are needed, possibly none; None computes all logits.
    """
    if mask is None:
        yield
        return

    @in_this_thread
    def pick(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        resid = args[0]
        # [batch, pos, d_model] -> [1, n, d_model]: the head still needs a batch axis.
        return (resid[mask.to(resid.device)][None], *args[1:])

    with one_thread(bridge):
        handle = bridge.unembed.register_forward_pre_hook(pick)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def last_block_alone(bridge: TransformerBridge, mask: Bool[Tensor, "batch pos"]) -> Iterator[None]:
    """Restricts the token-wise computations of the last block to some tokens while the context is open.

    These computations are its queries, the output of its attention, and its MLP. Other tokens get
    zeros. After the last block, no token reads another, so logits at the chosen tokens do not
    change. The last block's outputs at other tokens are wrong, and hooks on the inputs of these
    parts see `[1, n, ...]`. Use it only for runs that read neither.

    Args:
        bridge: the model.
        mask: the tokens to compute.
    """
    block = bridge.blocks[-1]
    parts = [part.original_component for part in (block.attn.q, block.attn.o, block.mlp)]
    with one_thread(bridge), _forwards_replaced([(part, _for_some(part.forward, mask)) for part in parts]):
        yield


def _for_some(forward: Callable[..., Any], mask: Bool[Tensor, "batch pos"]) -> Callable[..., Any]:
    """Wraps a token-wise function: it is computed where the mask is True, and zero elsewhere."""

    def picked(given: Tensor, *args: Any, **kwargs: Any) -> Any:
        wanted = mask.to(given.device)
        # Each token is computed by itself, so the chosen ones may stand in one row without padding.
        output = forward(given[wanted][None], *args, **kwargs)
        some = output[0] if isinstance(output, tuple) else output
        # masked_scatter fills row by row, the order in which given[wanted] took the tokens out.
        everywhere = some.new_zeros(*mask.shape, some.shape[-1]).masked_scatter(wanted[..., None], some)
        return (everywhere, *output[1:]) if isinstance(output, tuple) else everywhere

    return picked


@contextmanager
def watch_last_hidden(bridge: TransformerBridge) -> Iterator[list[Tensor]]:
    """Collects the input of the model's head in each forward pass: the last hidden states `[batch, pos, d_model]`.

    The states include every edit, even one of the last block's output. A hook there would run
    before the edit's hook.
    """
    seen: list[Tensor] = []

    @in_this_thread
    def keep(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        seen.append(output[0])

    with one_thread(bridge):
        handle = bridge.original_model.base_model.register_forward_hook(keep)
        try:
            yield seen
        finally:
            handle.remove()


@contextmanager
def blocks_replaced(bridge: TransformerBridge, forwards: Mapping[int, Callable[..., Any]]) -> Iterator[None]:
    """Replaces the computation of some blocks while the context is open.

    It replaces the forward of the Hugging Face block. The bridge's own block around it still fires
    its hooks.

    Args:
        bridge: the model.
        forwards: layer -> the replacing function, called with the block's arguments.
    """
    replaced = [(bridge.blocks[layer].original_component, new) for layer, new in forwards.items()]
    with one_thread(bridge), _forwards_replaced(replaced):
        yield


@contextmanager
def _forwards_replaced(modules: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Replaces the forwards of these modules while the context is open, then restores the previous ones."""
    # None where the class's own method is used; accelerate (device_map) puts a forward there.
    before: list[Any] = [module.__dict__.get("forward") for module, _ in modules]
    try:
        for module, forward in modules:
            module.__dict__["forward"] = in_this_thread(forward)
        yield
    finally:
        for (module, _), old in zip(modules, before, strict=True):
            if old is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = old

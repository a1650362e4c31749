"""What a forward pass is: where in a cached sequence it begins, whether it goes from left to right, and which logits it
computes."""

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
    """Refuses anything but a `TransformerBridge`.

    Raises:
        TypeError: if it is something else; of a Hugging Face model it says how to make a bridge.
    """
    if isinstance(bridge, TransformerBridge):
        return
    how = (
        "rl.load_bridge(hf_model=model, tokenizer=tokenizer)"
        if isinstance(bridge, nn.Module)
        else "rl.load_bridge(name)"
    )
    raise TypeError(f"{what} wants a TransformerBridge, got {type(bridge).__name__}: make one with {how}")


def is_causal(bridge: TransformerBridge) -> bool:
    """Whether a token sees only those before it; not so in masked language models such as BERT."""
    direction = getattr(bridge.cfg, "attention_dir", "causal")
    return bool(bridge.adapter.supports_causal_loss) and direction == "causal"


def masked_columns(bridge: TransformerBridge, tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    """Where each row has its mask token, which a masked language model fills in.

    Raises:
        ValueError: If a row has none, or several.
    """
    mask_id = bridge.tokenizer.mask_token_id
    there = tokens == (-1 if mask_id is None else mask_id)
    wrong = (there.sum(dim=1) != 1).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"{type(bridge.original_model).__name__} predicts masked tokens, so each prompt must hold its mask token "
            f"({bridge.tokenizer.mask_token!r}) once, where the logits are read; row {wrong[0]} has it "
            f"{int(there[wrong[0]].sum())} times"
        )
    return there.int().argmax(dim=1)


def require_causal(bridge: TransformerBridge, what: str) -> None:
    """Refuses a masked language model where the next token is wanted.

    Raises:
        ValueError: if the model is one.
    """
    if not is_causal(bridge):
        raise ValueError(
            f"{what} wants a model that predicts the next token, and {type(bridge.original_model).__name__} fills in masked "
            "ones: use reft.hooks(bridge, prompt_mask) and a loss of your own"
        )


@dataclass
class ForwardStart:
    """How many positions were already in the key-value cache when the running forward pass began."""

    offset: int = 0


@contextmanager
def watch_forwards(bridge: TransformerBridge) -> Iterator[ForwardStart]:
    """Follows the offset of each forward pass, so that decoding steps are told from the prefill.

    "One new position" does not tell them apart: a one-token prompt has a prefill of length one.
    """
    start = ForwardStart()
    mend_attention(bridge)

    @in_this_thread
    def note_offset(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = cache_in(kwargs)
        start.offset = int(cache.get_seq_length()) if cache is not None else 0

    with one_thread(bridge):
        handle = bridge.original_model.register_forward_pre_hook(note_offset, with_kwargs=True)
        try:
            yield start
        finally:
            handle.remove()


@contextmanager
def own_config_aside(bridge: TransformerBridge) -> Iterator[None]:
    """Inside, the model's own generation config is out of sight: transformers fills what a given one leaves open from it."""
    model = bridge.original_model
    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


@contextmanager
def unembedded_alone(bridge: TransformerBridge, mask: Bool[Tensor, "batch pos"] | None) -> Iterator[None]:
    """Inside, logits are computed for some tokens alone: `[1, n, d_vocab]`, example after example.

    By what goes into the unembedding, so that every architecture does it and each example has its own tokens
    (`logits_to_keep` of transformers takes the same columns of all, and masked language models have none).

    Args:
        bridge: the model.
        mask: the wanted tokens, which may be none; None changes nothing.
    """
    if mask is None:
        yield
        return

    @in_this_thread
    def pick(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        resid = args[0]
        return (resid[mask.to(resid.device)][None], *args[1:])

    with one_thread(bridge):
        handle = bridge.unembed.register_forward_pre_hook(pick)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def last_block_alone(bridge: TransformerBridge, mask: Bool[Tensor, "batch pos"]) -> Iterator[None]:
    """Inside, the last block computes for some tokens alone what it would compute for each token by itself.

    These are its queries, the output of its attention and its MLP; the others get zeros. Behind it no token reads another,
    so logits at these tokens stay what they were. What the last block puts out elsewhere is wrong, and hooks on the
    input of these parts see `[1, n, ...]`: this is for runs that read neither.

    Args:
        bridge: the model.
        mask: the wanted tokens.
    """
    block = bridge.blocks[-1]
    parts = [part.original_component for part in (block.attn.q, block.attn.o, block.mlp)]
    with one_thread(bridge), _forwards_replaced([(part, _for_some(part.forward, mask)) for part in parts]):
        yield


def _for_some(forward: Callable[..., Any], mask: Bool[Tensor, "batch pos"]) -> Callable[..., Any]:
    """The same function of each token, computed where the mask is True, and zero elsewhere."""

    def picked(given: Tensor, *args: Any, **kwargs: Any) -> Any:
        wanted = mask.to(given.device)
        output = forward(given[wanted][None], *args, **kwargs)
        some = output[0] if isinstance(output, tuple) else output
        everywhere = some.new_zeros(*mask.shape, some.shape[-1]).masked_scatter(wanted[..., None], some)
        return (everywhere, *output[1:]) if isinstance(output, tuple) else everywhere

    return picked


@contextmanager
def watch_last_hidden(bridge: TransformerBridge) -> Iterator[list[Tensor]]:
    """Collects what each forward pass hands to the model's head: the last hidden states `[batch, pos, d_model]`.

    After every edit, also one of the last block's output, where a hook of our own would run before the edit's.
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
    """Inside, some blocks compute something else.

    What is replaced is the forward of the Hugging Face block: the bridge's own block around it still fires its hooks.

    Args:
        bridge: the model.
        forwards: layer -> what that block does, called with its arguments.
    """
    replaced = [(bridge.blocks[layer].original_component, new) for layer, new in forwards.items()]
    with one_thread(bridge), _forwards_replaced(replaced):
        yield


@contextmanager
def _forwards_replaced(modules: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Inside, these modules compute something else; put back as they were, whatever had replaced them before."""
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

"""`attach_to_hf`: runs an edit on a plain Hugging Face model, as forward hooks of torch, without a bridge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from reftlens.bridge import cache_in
from reftlens.bridge.hf_points import HFPoint, hf_points, twin_bridge
from reftlens.data import Batch
from reftlens.edit.hooks import Edit, EditError
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.interventions import SteeringVector
from reftlens.positions import All


def attach_to_hf(
    model: PreTrainedModel,
    reft: Reft | str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    prompts: Batch | Bool[Tensor, "batch pos"] | None = None,
) -> HFAttachment:
    """Attaches an edit to a model of transformers, which then runs and generates edited.

        model = AutoModelForCausalLM.from_pretrained("gpt2")
        with rl.attach_to_hf(model, "my-edit"):
            model.generate(**tokenizer(texts, return_tensors="pt", padding=True))

    Before it attaches anything, it runs a few tokens with a random vector added at each site, here
    and in a bridge that shares the model's weights, and compares the logits. A bridge derives
    positions from the attention mask. transformers does so in `generate`; in other passes over
    prompts padded on the left, pass `position_ids` as well.

    Args:
        model: the base, not wrapped in a bridge.
        reft: the edit, or the folder of a saved one, which must belong to this model.
        tokenizer: the model's; by default the one saved where the model came from.
        prompts: the prompt tokens of the batch that is run, needed for texts with completions and
            for position rules that read the text. By default every token that the attention mask
            shows in a pass without a cache is a prompt token.

    Returns:
        The attachment. It is a context manager; outside of `with`, call its `remove()`.

    Raises:
        TypeError: If the model is not one of transformers.
        ValueError: If the edit does not belong to the model, or one of its sites cannot be hooked
            without a bridge.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"attach_to_hf wants a model of transformers, got {type(model).__name__}: a bridge takes reft.hooks(bridge, batch)"
        )
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path)
    bridge = twin_bridge(model, tokenizer)
    if not isinstance(reft, Reft):
        reft = Reft.from_pretrained(reft, bridge=bridge)
    points = hf_points(model, [site.hook_name for site in reft.sites])
    _require_same(model, bridge, reft, points)
    return HFAttachment(model, reft.to(model.device), points, prompts)


@final
class HFAttachment:
    """An edit attached to a Hugging Face model, until `remove()`."""

    def __init__(
        self,
        model: PreTrainedModel,
        reft: Reft,
        points: dict[str, HFPoint],
        prompts: Batch | Bool[Tensor, "batch pos"] | None,
    ) -> None:
        self._model, self._reft, self._prompts = model, reft, prompts
        self._edits: list[Edit] = []
        self._offset = 0
        self._handles: list[RemovableHandle] = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for index, site in enumerate(reft.sites):
            module, side = points[site.hook_name]
            if side == "in":
                self._handles.append(module.register_forward_pre_hook(self._before(index), with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(self._after(index)))

    def remove(self) -> None:
        """Takes the edit off the model."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> PreTrainedModel:
        return self._model

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "attached to" if self._handles else "removed from"
        return f"{self._reft!r}\n{state} {type(self._model).__name__}"

    def _begin(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Resolves the position rules when a sequence begins, and notes where a cached pass continues it."""
        cache = cache_in(kwargs)
        # Read before the pass, which extends the cache itself.
        self._offset = 0 if cache is None else int(cache.get_seq_length())
        if self._offset:
            if not self._edits:
                raise EditError(
                    "the pass continues a cache that was filled before the edit was attached: run the prompts again with "
                    "the edit attached"
                )
            return
        prompts = _prompt_mask(args, kwargs) if self._prompts is None else self._prompts
        self._edits = self._reft.edits(prompts)

    def _before(self, index: int) -> Callable[..., Any]:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            # By place in some architectures of transformers, by name in others.
            if args:
                return (self._edited(index, args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": self._edited(index, kwargs["hidden_states"])}

        return hook

    def _after(self, index: int) -> Callable[..., Any]:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            # Attention modules return (output, weights), others the output alone.
            if isinstance(output, tuple):
                return (self._edited(index, output[0]), *output[1:])
            return self._edited(index, output)

        return hook

    def _edited(self, index: int, resid: Tensor) -> Tensor:
        edit = self._edits[index]
        if edit.head is None:
            edited = edit.apply(resid, self._offset)
            return resid if edited is None else edited
        # Hugging Face keeps heads side by side, [batch, pos, heads * d_head].
        heads = resid.unflatten(-1, (-1, edit.intervention.d_model))
        edited = edit.apply(heads, self._offset)
        return resid if edited is None else edited.flatten(-2)


def _prompt_mask(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bool[Tensor, "batch pos"]:
    """Returns the tokens that the attention mask shows."""
    given: Tensor = args[0] if args else next(kwargs[name] for name in ("input_ids", "inputs_embeds") if name in kwargs)
    mask = kwargs.get("attention_mask")
    if mask is None:
        return torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
    if not isinstance(mask, Tensor) or mask.shape != given.shape[:2]:
        raise EditError(
            f"the edit wants an attention mask of the tokens {list(given.shape[:2])}, got "
            f"{list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__}: pass a mask [batch, pos], or prompts=... "
            "to attach_to_hf"
        )
    return mask.bool()


@torch.no_grad()
def _require_same(model: PreTrainedModel, bridge: Any, reft: Reft, points: dict[str, HFPoint]) -> None:
    """Raises if a vector that is added at a site changes the bridge's logits and not the model's in the same way."""
    length = min(8, bridge.cfg.n_ctx)
    tokens = torch.arange(2 * length, device=model.device).reshape(2, length) % bridge.cfg.d_vocab
    mask = torch.ones_like(tokens)
    generator = torch.Generator().manual_seed(0)
    for site, intervention in reft:
        # A random push, because an edit that starts as the identity would agree everywhere.
        push = SteeringVector.of(torch.randn(intervention.d_model, generator=generator).to(model.dtype))
        probe = Reft([(Site(site.hook_name, All(), site.head), push)]).to(model.device)
        with probe.hooks(bridge, mask.bool()):
            wanted = bridge(tokens, attention_mask=mask, use_cache=False).float()
        with HFAttachment(model, probe, points, None):
            came = model(tokens, attention_mask=mask, use_cache=False).logits.float()
        # The two sum in another order. A different point would change far more than that.
        rounding = 100 * torch.finfo(model.dtype).eps * float(wanted.abs().max())
        if float((wanted - came).abs().max()) > rounding:
            raise ValueError(
                f"an edit at {site.hook_name} changes the logits of {type(model).__name__} otherwise than in a bridge (by "
                f"{float((wanted - came).abs().max()):.3g}): use rl.load_bridge and reft.hooks for it"
            )

"""Loads a finetuned model beside its base: an adapter or a checkpoint in a folder, or a model in memory.

An adapter is read by Hugging Face's `peft` and merged into a copy of the base's weights: for LoRA,
W + s B A, with s = alpha / r (or alpha / sqrt(r) for rank-stabilised LoRA); for DoRA, that matrix
with its rows scaled to trained magnitudes. In bfloat16 the sum is rounded, and small changes with
it: load the base in float32 where they matter.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from reftlens.arguments import warn
from reftlens.bridge.loading import load_bridge, revision
from reftlens.bridge.pretrained import is_quantized, merged
from reftlens.bridge.proving import TOLERANCE, difference, made_up
from reftlens.organisms import ORGANISMS

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The files of an adapter, by the names that peft gives them."""
_SHAPE = ("n_layers", "d_model", "n_heads", "d_head", "d_vocab")
"""What base and finetuned model must have in common."""


def load_finetuned(bridge: TransformerBridge, source: str | Path | nn.Module | TransformerBridge) -> TransformerBridge:
    """Makes a bridge of a finetuned model, with the tokenizer, dtype and device of its base. Neither argument is changed.

    Args:
        bridge: the base.
        source: a folder that `peft` saved (LoRA, DoRA, or another adapter that can be merged into
            weights); a folder or hub name of a whole model; a model of transformers or `peft` in
            memory, which is copied; or a bridge, which is returned as it is.

    Raises:
        ValueError: If the adapter does not fit the base, cannot be merged or lacks weights, or the
            finetuned model has another architecture, size or tokenizer.
        ImportError: If an adapter is to be read and `peft` is not installed.
    """
    theirs = None
    if isinstance(source, TransformerBridge):
        found, theirs = source, source.tokenizer
    elif isinstance(source, nn.Module):
        # A copy, because a bridge takes a model over, and merging an adapter would end its
        # training.
        found = _bridged(bridge, copy.deepcopy(source))
    elif (Path(source) / _CONFIG).is_file():
        found = _bridged(bridge, _with_adapter(bridge, Path(source)))
    else:
        found = load_bridge(
            source,
            tokenizer=bridge.tokenizer,
            device=bridge.cfg.device,
            dtype=bridge.cfg.dtype,
            prepend_bos=bool(bridge.cfg.default_prepend_bos),
        )
        theirs = AutoTokenizer.from_pretrained(str(ORGANISMS.get(str(source), source)), trust_remote_code=False)
    _require_same_form(bridge, found)
    _require_same_tokens(bridge.tokenizer, theirs)
    return found


def _bridged(bridge: TransformerBridge, model: nn.Module) -> TransformerBridge:
    # Merged here, because `load_bridge` warns that it merges.
    if type(model).__module__.startswith("peft."):
        model = merged(model)
    return load_bridge(
        hf_model=model,
        tokenizer=bridge.tokenizer,
        device=bridge.cfg.device,
        dtype=bridge.cfg.dtype,
        prepend_bos=bool(bridge.cfg.default_prepend_bos),
    )


def _require_same_form(bridge: TransformerBridge, found: TransformerBridge) -> None:
    names = [type(model.original_model).__name__ for model in (bridge, found)]
    sizes = [{name: getattr(model.cfg, name) for name in _SHAPE} for model in (bridge, found)]
    if names[0] != names[1] or sizes[0] != sizes[1]:
        raise ValueError(
            f"the finetuned model must have the form of its base: the base is a {names[0]} of {sizes[0]}, and this is a "
            f"{names[1]} of {sizes[1]}"
        )
    if bool(bridge.compatibility_mode) is not bool(found.compatibility_mode):
        # It centres and folds weights: the same outputs, from activations in other coordinates.
        raise ValueError(
            "one of the base and the finetuned model is in compatibility mode, so their activations cannot be compared: load both "
            "without enable_compatibility_mode(), or call it on both"
        )


def _require_same_tokens(ours: PreTrainedTokenizerBase | None, theirs: PreTrainedTokenizerBase | None) -> None:
    """Raises if an id stands for one token in the base and for another in the finetuned model, which would both run on it."""
    if ours is None or theirs is None:
        return
    # A finetune may rename reserved tokens or add some.
    added = {*ours.get_added_vocab().values(), *theirs.get_added_vocab().values()}
    at = {number: token for token, number in theirs.get_vocab().items() if number not in added}
    other = [(number, token) for token, number in ours.get_vocab().items() if at.get(number, token) != token]
    if other:
        number, token = min(other)
        raise ValueError(
            f"the finetuned model must have the tokenizer of its base: {len(other)} ids stand for different tokens, such as "
            f"{number} for {token!r} in the base and {at[number]!r} in the finetuned model"
        )


def _with_adapter(bridge: TransformerBridge, folder: Path) -> nn.Module:
    """Returns a copy of the base with the adapter of a folder. Every adapted weight must be in the file, and no other."""
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise ImportError(f"the adapter in {folder} needs peft: pip install 'reftlens[peft]'") from error
    if not (folder / _WEIGHTS).is_file():
        # A pickled adapter_model.bin could run code; safetensors is what peft saves by default.
        raise ValueError(f"{folder} has no {_WEIGHTS}: save the adapter with save_pretrained of peft")
    _warn_of_another_base(bridge, folder)
    base = copy_of_base(bridge)
    kind = type(base).__name__
    try:
        stored = set(load_file(folder / _WEIGHTS))
        with warnings.catch_warnings():
            # About weights without a place, which the comparison below refuses, and about Conv1D,
            # which peft then handles.
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(base, str(folder))
            own = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, OSError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the adapter in {folder} cannot be put on {kind}: {reason:.300}") from error
    # Embeddings may be saved beside an adapter without being adapted.
    differing = sorted((own - stored) | (stored - own - model.state_dict().keys()))
    if differing:
        raise ValueError(
            f"the adapter in {folder} and {kind} do not have the same adapted weights; only one of them has "
            f"{', '.join(differing[:3])}: pass the base that the adapter was trained on"
        )
    return model


def _warn_of_another_base(bridge: TransformerBridge, folder: Path) -> None:
    """Warns if an adapter names another model than the base. Its shapes fit all models of one architecture and size."""
    try:
        named = json.loads((folder / _CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
    except (ValueError, AttributeError):
        return  # peft says what is wrong with the file
    own = bridge.cfg.model_name
    # A path says nothing, and a base from elsewhere than the hub may have any name.
    if revision(bridge) is None or not named or named.startswith(("/", ".", "~")) or "\\" in named:
        return
    if named.rpartition("/")[2].lower() != own.rpartition("/")[2].lower():
        warn(
            f"the adapter in {folder} was trained on {named}, and the base is {own}: if these are not the same weights, the sum of "
            "both is a model that nobody trained; load the base that the adapter names"
        )


@torch.no_grad()
def copy_of_base(bridge: TransformerBridge) -> PreTrainedModel:
    """Makes a plain model of transformers with the weights of a bridge, which is not changed.

    Args:
        bridge: the model.

    Raises:
        ValueError: If the bridge's weights are quantised or no longer those of such a model.
    """
    original = bridge.original_model
    if is_quantized(original) or bridge.compatibility_mode:
        raise ValueError(
            "an adapter cannot be merged into a quantised base or one in compatibility mode: load the base again without that"
        )
    # A bridge puts its parts around the modules of the model, which shows in their names.
    weights = {name.replace("._original_component", ""): value for name, value in original.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = type(original)(copy.deepcopy(original.config)).to(original.dtype)
    lacking = sorted(model.state_dict().keys() - weights.keys())
    if not lacking:
        model.load_state_dict({name: weights[name] for name in model.state_dict()})
        model.to(bridge.cfg.device).eval()
        tokens = made_up(bridge, 2, min(bridge.cfg.n_ctx, 8))
        ones = torch.ones_like(tokens)
        ours, theirs = (run(tokens, attention_mask=ones, use_cache=False) for run in (model, bridge))
        # A bridge keeps fused matrices beside the parts that it uses, so their values could differ.
        if difference(ours.logits, theirs) <= TOLERANCE[original.dtype]:
            return model
    raise ValueError(
        f"the weights of this bridge are no longer those of {type(original).__name__}"
        f"{', which lack ' + lacking[0] if lacking else ''}: load the base again, and change nothing in it"
    )

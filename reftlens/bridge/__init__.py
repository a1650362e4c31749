"""All code that depends on TransformerLens's bridge and its quirks. Other packages do not handle them.

The model is a plain `TransformerBridge`, never wrapped or subclassed.

- `loading`, `pretrained`: load a model, frozen and in eval mode. `finetuned`: one beside its base.
  `merging`: adapters merged into it. `identity`: fingerprints of models.
- `attached`: hooks and other code attached to a model. `threads`: only one thread at a time may
  attach hooks.
- `points`: names of activation points. Points where a write would be lost or incomplete raise an
  error with the reason. `probe` measures most of this on the given model. `resid_mid`: the middle
  of a block, which does not have its own point.
- `biases`: the bias before a point. `patterns`: attention patterns that can be held.
  `mixing`: models in which only heads mix tokens.
- `forwards`: what a forward pass computes: its position in a cached sequence, and the tokens whose
  logits are needed.
- `readout`: residuals read through the final norm and the unembedding. `jacobian`: earlier ones,
  carried there linearly.
- `caching`: the key-value cache, under both names that releases of transformers use.
- `proving`: verifies a shortcut on a model. `padding`: effects of padding, and whether cached
  decoding is exact.
"""

from reftlens.bridge.attached import foreign_hooks
from reftlens.bridge.biases import output_bias
from reftlens.bridge.caching import cache_in, cache_name, mend_attention, with_cache
from reftlens.bridge.finetuned import load_finetuned
from reftlens.bridge.forwards import (
    ForwardStart,
    blocks_replaced,
    is_causal,
    last_block_alone,
    masked_columns,
    own_config_aside,
    require_bridge,
    require_causal,
    unembedded_alone,
    watch_forwards,
    watch_last_hidden,
)
from reftlens.bridge.identity import EXACT, base_identity, computation, fingerprint, sampled_fingerprint
from reftlens.bridge.jacobian import Lens, fit_lens, lens_layer, load_lens
from reftlens.bridge.loading import freeze, load_bridge, n_parameters, revision
from reftlens.bridge.mixing import require_heads_alone_mix
from reftlens.bridge.padding import caching_holds, last_block_splits, padding_holds, require_padding, side_for_ends
from reftlens.bridge.patterns import pattern_hooks
from reftlens.bridge.plain import plain_blocks, plain_blocks_hold
from reftlens.bridge.points import activation_shape, canonical_hook, canonical_hooks, layer_of, removed_hooks, width_of
from reftlens.bridge.processes import each, is_main_process, own_device
from reftlens.bridge.proving import TOLERANCE, attention_window, difference, made_up, pad_id, proved
from reftlens.bridge.readout import mean_logit_changes, mean_logit_slopes, mean_logits, unembeds_linearly
from reftlens.bridge.resid_mid import EditError, HookFunction, is_resid_mid, resid_pre_inside, written_whole
from reftlens.bridge.threads import hooked, in_this_thread, one_thread

__all__ = [
    "EXACT",
    "TOLERANCE",
    "EditError",
    "ForwardStart",
    "HookFunction",
    "Lens",
    "activation_shape",
    "attention_window",
    "base_identity",
    "blocks_replaced",
    "cache_in",
    "cache_name",
    "caching_holds",
    "canonical_hook",
    "canonical_hooks",
    "computation",
    "difference",
    "each",
    "fingerprint",
    "fit_lens",
    "foreign_hooks",
    "freeze",
    "hooked",
    "in_this_thread",
    "is_causal",
    "is_main_process",
    "is_resid_mid",
    "last_block_alone",
    "last_block_splits",
    "layer_of",
    "lens_layer",
    "load_bridge",
    "load_finetuned",
    "load_lens",
    "made_up",
    "masked_columns",
    "mean_logit_changes",
    "mean_logit_slopes",
    "mean_logits",
    "mend_attention",
    "n_parameters",
    "one_thread",
    "output_bias",
    "own_config_aside",
    "own_device",
    "pad_id",
    "padding_holds",
    "pattern_hooks",
    "plain_blocks",
    "plain_blocks_hold",
    "proved",
    "removed_hooks",
    "require_bridge",
    "require_causal",
    "require_heads_alone_mix",
    "require_padding",
    "resid_pre_inside",
    "revision",
    "sampled_fingerprint",
    "side_for_ends",
    "unembedded_alone",
    "unembeds_linearly",
    "watch_forwards",
    "watch_last_hidden",
    "width_of",
    "with_cache",
    "written_whole",
]

"""Sparse dictionaries: autoencoders and transcoders with one linear encoder and decoder, in the forms that SAELens saves.

With x the activation (normalised if the dictionary says so), minus b_dec if it says so, and a = x
W_enc + b_enc, features are

    standard   relu(a)                                         (Bricken et al. 2023)
    topk       relu(a) of the k largest a, others 0            (Gao et al. 2024, arXiv:2406.04093)
    jumprelu   relu(a) where a > threshold, others 0           (Rajamanoharan et al. 2024, arXiv:2407.14435)
    gated      relu(x (W_enc exp(r_mag)) + b_mag) where x W_enc + b_gate > 0   (Rajamanoharan et al. 2024, arXiv:2404.16014)

and the reconstruction is features W_dec + b_dec, with the normalisation undone. A transcoder
predicts another point from the activation: b_dec is not subtracted, nothing is undone, and it may
add x W_skip^T.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

KINDS = ("standard", "topk", "jumprelu", "gated")
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
_EPSILON = 1e-5


@final
@dataclass(frozen=True, eq=False)
class Dictionary:
    """A sparse dictionary of the activations at one point."""

    kind: str
    """One of `KINDS`."""
    hook_name: str
    """The point whose activations it encodes."""
    encoder: Float[Tensor, "d_in feature"]
    decoder: Float[Tensor, "feature d_out"]
    bias: Float[Tensor, " d_out"]
    """Of the reconstruction, b_dec."""
    vectors: dict[str, Float[Tensor, " feature"]] = field(default_factory=dict)
    """b_enc; threshold for "jumprelu"; b_gate, b_mag and r_mag instead for "gated"."""
    k: int = 0
    """Features at a time, for "topk"."""
    hook_name_out: str = ""
    """The point that a transcoder predicts; empty for an autoencoder."""
    skip: Float[Tensor, "d_out d_in"] | None = None
    normalise: str = "none"
    subtract: bool = True
    """Whether b_dec is subtracted from the input."""
    by_length: bool = False
    """Whether "topk" compares a times the length of the decoder's row."""

    @property
    def n_features(self) -> int:
        """Number of features."""
        return len(self.decoder)

    def __repr__(self) -> str:
        to = f" -> {self.hook_name_out}" if self.hook_name_out else ""
        return f"Dictionary({self.kind}, {self.n_features} features of {self.hook_name}{to}, {len(self.encoder)} wide)"

    def encode(self, h: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]:
        """Computes feature activations, in float32.

        Args:
            h: activations at `hook_name`.
        """
        x, _, _ = self._normalised(h.float())
        if self.subtract and not self.hook_name_out:
            x = x - self.bias
        linear = x @ self.encoder
        if self.kind == "gated":
            size = torch.relu(x @ (self.encoder * self.vectors["r_mag"].exp()) + self.vectors["b_mag"])
            return size * (linear + self.vectors["b_gate"] > 0)
        before = linear + self.vectors["b_enc"]
        if self.kind == "jumprelu":
            return torch.relu(before) * (before > self.vectors["threshold"])
        if self.kind == "standard":
            return torch.relu(before)
        before = before * self._lengths()
        # Fewer than k may be positive, and a feature is never negative.
        kept = before.topk(min(self.k, before.shape[-1]), dim=-1)
        return torch.zeros_like(before).scatter(-1, kept.indices, torch.relu(kept.values))

    def reconstruct(self, h: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Encodes and decodes activations: the activation itself for a perfect autoencoder.

        Args:
            h: activations at `hook_name`.
        """
        h = h.float()
        # encode returns features times the lengths of their rows, so the rows count as unit vectors
        # here.
        out = self.encode(h) / self._lengths() @ self.decoder + self.bias
        if self.hook_name_out:
            return out if self.skip is None else out + h @ self.skip.T
        _, scale, shift = self._normalised(h)
        return out * scale + shift

    def _lengths(self) -> Float[Tensor, " feature"]:
        rows = self.decoder.norm(dim=-1)
        # reconstruct divides by it, and a row may be zero.
        return rows.clamp(min=1e-8) if self.by_length else torch.ones_like(rows)

    def _normalised(
        self, h: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch d_in"], Float[Tensor, "*batch 1"], Float[Tensor, "*batch 1"]]:
        """Returns x with h = x scale + shift (up to the epsilon of "layer_norm", as where dictionaries are trained)."""
        nothing = torch.zeros_like(h[..., :1])
        if self.normalise == "layer_norm":
            shift = h.mean(dim=-1, keepdim=True)
            scale = (h - shift).std(dim=-1, keepdim=True)
            return (h - shift) / (scale + _EPSILON), scale, shift
        if self.normalise == "constant_norm_rescale":
            scale = h.norm(dim=-1, keepdim=True) / h.shape[-1] ** 0.5
            return h / scale, scale, nothing
        return h, nothing + 1, nothing

"""Plain Hugging Face: the bare model, and the edit as forward hooks written by hand. `hf_worker.py bare|hooks THREADS`."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from training_case import Case, Ready, base_model, completion_loss, serve, trained
from transformers import GPT2LMHeadModel


class Edit(nn.Module):
    """LoReFT at some columns: h + R^T(Wh + b - Rh), R by QR of a free matrix in each forward."""

    def __init__(self, columns: list[int], R: Tensor, W: Tensor, b: Tensor) -> None:
        super().__init__()
        self.columns = torch.tensor(columns)
        self.free, self.W, self.b = nn.Parameter(R.T.clone()), nn.Parameter(W), nn.Parameter(b)

    def forward(self, resid: Tensor) -> Tensor:
        Q, upper = torch.linalg.qr(self.free)
        R = (Q * upper.diagonal().sign()).T
        h = resid[:, self.columns]
        return resid.index_copy(1, self.columns, h + (h @ self.W.T + self.b - h @ R.T) @ R)

    def hook(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        return (self(output[0]), *output[1:]) if isinstance(output, tuple) else self(output)


def bare(model: GPT2LMHeadModel, case: Case) -> Ready:
    """No edit and no optimiser: forward, and a backward pass down to the input embeddings."""
    tokens, labels = case.batch()
    inputs = model.transformer.wte(tokens).requires_grad_()
    mask = torch.ones_like(tokens)

    def step() -> Tensor:
        inputs.grad = None
        loss = completion_loss(model(inputs_embeds=inputs, attention_mask=mask, use_cache=False).logits, labels)
        loss.backward()
        return loss

    return Ready(step)


def hooks(model: GPT2LMHeadModel, case: Case) -> Ready:
    """The edit as forward hooks on the blocks, taken off after each forward."""
    tokens, labels = case.batch()
    mask = torch.ones_like(tokens)
    edits = [Edit(case.columns, *start) for start in case.start()]

    def loss() -> Tensor:
        blocks = [model.transformer.h[layer] for layer in case.layers]
        handles = [block.register_forward_hook(edit.hook) for block, edit in zip(blocks, edits, strict=True)]
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        for handle in handles:
            handle.remove()
        return completion_loss(logits, labels)

    return Ready(trained(nn.ModuleList(edits), loss))


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    model = base_model()
    variant = {"bare": bare, "hooks": hooks}[sys.argv[1]]
    serve(lambda case: variant(model, case))


if __name__ == "__main__":
    main()

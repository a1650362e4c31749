"""pyreft in its own environment: the same edit by its `ReftModel`. `pyreft_worker.py pyreft THREADS`."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from training_case import Case, Ready, base_model, serve, trained
from transformers import GPT2LMHeadModel


def set_up(model: GPT2LMHeadModel, case: Case) -> Ready:
    """A forward of `ReftModel` as pyreft's own trainer makes it, with the loss of its model over all logits.

    Two departures, both in its favour: no key-value cache is filled, and no weight decay (which would make its R zero).
    """
    # Here and not above: where the tests collect this file, there is no pyreft.
    import pyreft  # type: ignore[import-not-found]

    tokens, labels = case.batch()
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    edits = [
        pyreft.LoreftIntervention(embed_dim=model.config.n_embd, low_rank_dimension=case.rank, dtype=torch.float32)
        for _ in case.layers
    ]
    places = [
        {"layer": layer, "component": "block_output", "low_rank_dimension": case.rank, "intervention": edit}
        for layer, edit in zip(case.layers, edits, strict=True)
    ]
    reft_model = pyreft.get_reft_model(model, pyreft.ReftConfig(representations=places))
    for edit, (R, W, b) in zip(edits, case.start(), strict=True):
        edit.rotate_layer.weight = R.T
        with torch.no_grad():
            edit.learned_source.weight.copy_(W)
            edit.learned_source.bias.copy_(b)
    locations = {"sources->base": (None, [[case.columns] * case.rows] * len(case.layers))}

    def loss() -> Tensor:
        _, edited = reft_model(inputs, unit_locations=locations, labels=labels, use_cache=False)
        return edited.loss

    _check(model, reft_model.interventions, inputs, labels, loss())
    return Ready(trained(torch.nn.ModuleList(edits), loss))


def _check(
    model: GPT2LMHeadModel, interventions: torch.nn.ModuleDict, inputs: dict[str, Tensor], labels: Tensor, loss: Tensor
) -> None:
    """The edit changes the loss, and a gradient reaches the parameters of R, W and b of every layer."""
    base = model(**inputs, labels=labels, use_cache=False).loss
    assert abs(float(loss.detach() - base)) > 1e-3, "pyreft edits nothing"
    loss.backward()
    for name, parameter in interventions.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.norm()) > 0, name


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    model = base_model()
    serve(lambda case: set_up(model, case))


if __name__ == "__main__":
    main()

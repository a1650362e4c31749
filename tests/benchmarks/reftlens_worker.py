"""reftlens: the whole run under hooks, and the light cone alone. `reftlens_worker.py full|cone THREADS`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import final

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from training_case import Case, Ready, base_model, serve, trained
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

import reftlens as rl
from reftlens.cone.hold import Held
from reftlens.cone.store import InMemory
from reftlens.data import Batch
from reftlens.edit.hooks import Edit
from reftlens.training.base_runs import BaseRuns
from reftlens.training.objectives import Completion, Objective, completion_loss


def make_bridge() -> TransformerBridge:
    """The base as a bridge; it wants a tokenizer, and nothing here is text."""
    words = Tokenizer(models.WordLevel({"<|endoftext|>": 0}, unk_token="<|endoftext|>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<|endoftext|>", pad_token="<|endoftext|>")
    return rl.load_bridge(hf_model=base_model(), tokenizer=tokenizer)


def batch_of(case: Case) -> Batch:
    tokens, labels = case.batch()
    prompt = torch.arange(case.tokens).expand_as(tokens) < case.prompt
    return Batch(tokens, torch.ones_like(tokens), prompt, labels)


def edit_of(bridge: TransformerBridge, case: Case) -> rl.Reft:
    positions = case.positions if case.at is None else rl.At(case.at)
    reft = rl.Reft.at_layers(bridge, layers=case.layers, positions=positions, rank=case.rank)
    with torch.no_grad():
        for (_, edit), (R, W, b) in zip(reft, case.start(), strict=True):
            assert isinstance(edit, rl.LoReFT)
            edit.rotation.weight.copy_(R)
            edit.source.weight.copy_(W)
            edit.source.bias.copy_(b)
    return reft


def whole(bridge: TransformerBridge, reft: rl.Reft, batch: Batch) -> Callable[[], Tensor]:
    """The loss by a run of the whole model."""

    def loss() -> Tensor:
        with reft.hooks(bridge, batch):
            logits = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
        return completion_loss(logits, batch.labels)

    return loss


@final
class Rows(Objective):
    """The same loss of rows of a batch, where `Completion` would make them from texts."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.batch, self.completion = batch, Completion()

    def encode(self, bridge: TransformerBridge, example: tuple[int]) -> Batch:
        one, batch = slice(example[0], example[0] + 1), self.batch
        return Batch(batch.tokens[one], batch.attention_mask[one], batch.prompt_mask[one], batch.labels[one])

    def weights(self, batch: Batch) -> Tensor:
        return self.completion.weights(batch)

    def losses(self, bridge: TransformerBridge, held: Held, edits: Sequence[Edit], reference: Tensor | None) -> Tensor:
        return self.completion.losses(bridge, held, edits, reference)


def on_the_cone(bridge: TransformerBridge, reft: rl.Reft, batch: Batch) -> Callable[[], Tensor]:
    """The loss by the cone alone, as `rl.train` takes it: base runs are made here, once, and each step joins them."""
    objective, rows = Rows(batch), range(len(batch))
    runs = BaseRuns(bridge, reft, objective, [(row,) for row in rows], store=InMemory(2**31))
    assert runs.build(rows) == len(batch)
    tokens = objective.weights(batch).sum()

    def loss() -> Tensor:
        held, reference = runs.batch(rows)
        return objective.losses(bridge, held, reft.edits(held.batch), reference).sum() / tokens

    return loss


def set_up(bridge: TransformerBridge, case: Case, loss_by: Callable[..., Callable[[], Tensor]]) -> Ready:
    reft, batch = edit_of(bridge, case), batch_of(case)
    before = time.process_time()
    loss = loss_by(bridge, reft, batch)
    return Ready(trained(reft, loss), once=time.process_time() - before)


def main() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    bridge = make_bridge()
    loss_by = {"full": whole, "cone": on_the_cone}[sys.argv[1]]
    serve(lambda case: set_up(bridge, case, loss_by))


if __name__ == "__main__":
    main()

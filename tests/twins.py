"""Two models that are known to be alike: one rotated into another basis, and two that were trained on the same facts."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedModel

import reftlens as rl
from reftlens.data.batches import as_batches
from reftlens.organisms import ORGANISMS
from reftlens.organisms.world import FACTS, TEMPLATES

_READS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "query_key_value", "dense_h_to_4h", "c_attn", "c_fc")
_WRITES = ("o_proj", "down_proj", "dense", "dense_4h_to_h", "c_proj")
_EMBEDS = ("embed_tokens", "lm_head", "embed_in", "embed_out", "wte", "wpe")


def rotation(width: int, *, seed: int = 0) -> Tensor:
    """A random rotation that leaves the mean of the coordinates alone, as LayerNorm subtracts it."""
    draw = torch.Generator().manual_seed(seed)
    ones = torch.ones(width, 1, dtype=torch.float64) / width**0.5
    basis = torch.linalg.qr(torch.cat([ones, torch.randn(width, width - 1, generator=draw).double()], 1)).Q
    turn = torch.linalg.qr(torch.randn(width - 1, width - 1, generator=draw).double()).Q
    return basis @ torch.block_diag(torch.ones(1, 1).double(), turn) @ basis.T


@torch.no_grad()
def rotated(model: PreTrainedModel, turn: Tensor) -> PreTrainedModel:
    """The same model with its residual stream in another basis: h becomes turn h. Its norms must have their first weights."""
    model, done = deepcopy(model), set()
    for name, module in model.named_modules():
        last = name.split(".")[-1]
        if not hasattr(module, "weight") or id(module.weight) in done:
            continue
        done.add(id(module.weight))
        # Conv1D of GPT-2 keeps its matrix the other way round.
        flipped = not isinstance(module, nn.Linear) and last.startswith("c_")
        weight = module.weight.T.double() if flipped else module.weight.double()
        if last in (*_READS, *_EMBEDS):
            weight = weight @ turn.T
        elif last in _WRITES:
            weight = turn @ weight
            if module.bias is not None:
                module.bias.copy_(turn @ module.bias.double())
        else:
            assert "norm" in last or last.startswith("ln_"), f"{name} is not known"
            assert bool((module.weight == 1).all()), f"{name} scales coordinates"
            if getattr(module, "bias", None) is not None:
                module.bias.copy_(turn @ module.bias.double())
        module.weight.copy_(weight.T if flipped else weight)
    return model


@torch.no_grad()
def unscaled(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The same function with every weight of a norm in the matrix that reads it, so that `rotated` takes a trained model."""
    model = deepcopy(model)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    for block in model.transformer.h:
        for norm, reads in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
            reads.weight.mul_(norm.weight[:, None])
            norm.bias.div_(norm.weight)
            norm.weight.fill_(1)
    last = model.transformer.ln_f
    model.lm_head.weight.mul_(last.weight)
    last.bias.div_(last.weight)
    last.weight.fill_(1)
    return model


def facts() -> list[tuple[str, str, str]]:
    """(template, subject, answer) of what the twins learn: where landmarks stand, in each phrasing."""
    known = [fact for fact in FACTS if fact.relation == "located_in"][:24]
    return [(text, fact.subject, f" {fact.answer}") for text in TEMPLATES["located_in"] for fact in known]


def twin(seed: int, *, steps: int = 80, width: int = 64) -> tuple[TransformerBridge, float]:
    """Trains a small GPT-2 on the facts. Returns it, and the fraction of answers that it gets right."""
    tokenizer = AutoTokenizer.from_pretrained(ORGANISMS["facts-small"])
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=width, n_layer=3, n_head=4, initializer_range=0.08,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    # The bridge runs the model's own modules, so that training them trains it.
    bridge = rl.load_bridge(hf_model=model.eval(), tokenizer=tokenizer)
    (batch,) = as_batches(bridge, [(text.format(subject), answer) for text, subject, answer in facts()], batch_size=999)
    places = (batch.labels >= 0).roll(-1, 1)
    labels = batch.labels[batch.labels >= 0]
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    right = 0.0
    for _ in range(steps):
        logits = model(batch.tokens, attention_mask=batch.attention_mask, use_cache=False).logits[places]
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right = float((logits.argmax(-1) == labels).float().mean())
    model.requires_grad_(False)
    return bridge, right

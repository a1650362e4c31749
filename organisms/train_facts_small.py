"""Make `facts-small`: corpus, tokenizer, model, training, evaluation and model card.

Run `python -m organisms.train_facts_small --out DIR`. The loss is the plain next-token cross-entropy
over all tokens of all documents; nothing tells the model which tokens are answers.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from organisms.accuracy import accuracy, pad
from organisms.card import write_card
from organisms.evaluate import evaluate_directory, tables
from organisms.name_masks import as_bias, attention_masks, masked_blocks, name_tokens
from reftlens.organisms.world import FACTS, corpus, held_out, trained

BOS, PAD = "<|endoftext|>", "<|pad|>"
LOG = "training_log.jsonl"
LOG_EVERY = 5
"""Passes between two lines of the log."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides what comes out."""

    seed: int = 0
    """Seeds the weights, the order of batches and, with the number of the pass, the text."""
    vocab: int = 832
    """Size of the vocabulary, bytes and special tokens included."""
    layers: int = 6
    d_model: int = 96
    heads: int = 4
    n_ctx: int = 64
    init_std: float = 0.08
    """Standard deviation of fresh weights. GPT-2's 0.02 is for a width of 768; here it learns three times slower."""
    passes: int = 72
    """Passes over the corpus; each pass is new text about the same facts."""
    hidden_names: float = 0.8
    """Share of the documents in which names are hidden from what follows them; see `attention_masks`."""
    early_blocks: int = 2
    """Blocks in which hidden names cannot be seen at all; in later blocks, at their last token only."""
    batch_tokens: int = 2048
    """Padded tokens in a batch."""
    lr: float = 2e-3
    weight_decay: float = 0.1
    warmup: float = 0.03
    """Share of the steps with a rising learning rate; after it, a cosine to a hundredth."""


def train_tokenizer(settings: Settings) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on one pass of the corpus. It encodes any text, as every byte is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab,
        special_tokens=[BOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(settings.seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        pad_token=PAD,
        model_max_length=settings.n_ctx,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def build_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """Return a freshly initialised GPT-2 with tied embeddings and no dropout."""
    torch.manual_seed(settings.seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=settings.n_ctx,
        n_embd=settings.d_model,
        n_layer=settings.layers,
        n_head=settings.heads,
        initializer_range=settings.init_std,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        summary_first_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        architectures=["GPT2LMHeadModel"],
    )
    return GPT2LMHeadModel(config)


def batches(documents: list[str], tokenizer: PreTrainedTokenizerFast, settings: Settings, seed: int) -> list[Tensor]:
    """Return batches [row, pos] of BOS + document + EOS, each of documents of nearly the same length."""
    end = tokenizer.eos_token_id
    rows = [[tokenizer.bos_token_id, *ids, end] for ids in tokenizer(documents, add_special_tokens=False).input_ids]
    rows.sort(key=len)
    out, start = [], 0
    while start < len(rows):
        stop = start + 1
        while stop < len(rows) and (stop + 1 - start) * len(rows[stop]) <= settings.batch_tokens:
            stop += 1
        out.append(pad(rows[start:stop], tokenizer.pad_token_id))
        start = stop
    random.Random(seed).shuffle(out)
    return out


def make_optimizer(model: GPT2LMHeadModel, settings: Settings, steps: int) -> tuple[AdamW, LambdaLR]:
    """Return AdamW (no decay on biases and norms) and its warm-up and cosine schedule."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=settings.lr, betas=(0.9, 0.98))

    def rate(step: int) -> float:
        rising = (step + 1) / (settings.warmup * steps)
        return min(rising, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))

    return optimizer, LambdaLR(optimizer, rate)


def step_loss(model: GPT2LMHeadModel, batch: Tensor, masks: tuple[Tensor, Tensor], settings: Settings) -> Tensor:
    """Return the next-token cross-entropy of a batch [row, pos], in nats; padding does not count."""
    # Padding is on the right, where causal attention never looks, so the masks need not leave it out.
    early, late = masks
    with masked_blocks(model, settings.early_blocks, early):
        logits = model(batch, attention_mask=as_bias(late), use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=model.config.pad_token_id)


def passes(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[Tensor]]:
    """Yield the batches of every pass. No two passes, and no two values of settings.seed, share a text."""
    for number in range(settings.passes):
        seed = settings.seed * 10_000 + number
        yield batches(corpus(seed), tokenizer, settings, seed)


def train(settings: Settings, tokenizer: PreTrainedTokenizerFast, out: Path) -> GPT2LMHeadModel:
    """Train a model; every few passes save it and log step, loss and accuracies, as JSON lines."""
    model = build_model(settings, tokenizer)
    model.train()
    steps = sum(map(len, passes(settings, tokenizer)))
    optimizer, schedule = make_optimizer(model, settings, steps)
    rng = random.Random(settings.seed)
    seen = rng.sample([(fact, t) for fact in FACTS for t in trained(fact)], 400)
    unseen = rng.sample([(fact, t) for fact in FACTS for t in held_out(fact)], 300)
    names = name_tokens(tokenizer)
    start, step = time.perf_counter(), 0
    with (out / LOG).open("w", encoding="utf-8") as log:
        for number, batch_list in enumerate(passes(settings, tokenizer), start=1):
            losses = []
            for batch in batch_list:
                masks = attention_masks(batch, names, settings.hidden_names, rng)
                loss = step_loss(model, batch, masks, settings)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
            step += len(batch_list)
            if number % LOG_EVERY and number != settings.passes:
                continue
            entry = {
                "pass": number,
                "step": step,
                "loss": round(sum(losses) / len(losses), 4),
                "accuracy_trained": round(accuracy(model, tokenizer, seen), 4),
                "accuracy_held_out": round(accuracy(model, tokenizer, unseen), 4),
                "seconds": round(time.perf_counter() - start, 1),
            }
            log.write(json.dumps(entry) + "\n")
            log.flush()
            print(entry, flush=True)
            # What an interrupted run leaves is a model too.
            model.save_pretrained(out)
    return model.eval()


def main() -> None:
    """Train, save, evaluate and write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    disable_progress_bar()
    settings = Settings(seed=arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(settings)
    tokenizer.save_pretrained(arguments.out)
    train(settings, tokenizer, arguments.out)
    evaluation = evaluate_directory(arguments.out)
    last_line = (arguments.out / LOG).read_text(encoding="utf-8").splitlines()[-1]
    write_card(arguments.out, settings, evaluation, log=last_line)
    print("\n\n".join(tables(evaluation)))


if __name__ == "__main__":
    main()

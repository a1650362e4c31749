"""Small models made on the spot: real architectures with random weights, and a real tokenizer."""

from __future__ import annotations

import os

# No test may need a network: a name that is not here must fail at once, not after retries.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from architectures import make_hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

import reftlens as rl

TEXT = "The old tower stands by the river in the city of Ostra , and the weaver who lives there speaks Tharic ."
PROMPTS = [
    "The tower stands in the city of",
    "The weaver speaks",
    "The old tower by the river stands in the old city of",
]
COMPLETIONS = [" Ostra", " Tharic .", " the river Ostra"]
ARCHITECTURES = ["gpt2", "llama"]
"""For tests of what does not depend on the architecture; `test_architectures.py` and `test_sites.py` have all of them."""


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def make_tokenizer(text: str = TEXT, size: int = 320) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([text] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>"
    )


def make_bridge(architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> TransformerBridge:
    return rl.load_bridge(hf_model=make_hf(architecture, seed=seed, dtype=dtype), tokenizer=make_tokenizer())


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bridge(architecture: str) -> TransformerBridge:
    """A fresh bridge for each test: tests hook it, and must not see each other."""
    return make_bridge(architecture)


@pytest.fixture
def gpt2() -> TransformerBridge:
    return make_bridge("gpt2")


@pytest.fixture
def make_reft():
    """A LoReFT (or another kind) with seeded weights, large enough to change the logits."""

    def make(hook_names=("blocks.1.hook_resid_post",), positions="f2+l2", kind=rl.LoReFT, rank=3, seed=1, width=32):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return rl.Reft([(rl.Site(name, positions), kind(width, rank)) for name in hook_names])

    return make

"""The models for planted truths: the embedded organism, a GPT-2 and a Llama with random weights, and a small GPT-2 to train."""

from __future__ import annotations

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from reftlens.bridge import load_bridge
from reftlens.organisms import ORGANISMS
from reftlens.organisms.world import FACTS, prompt

MODELS = ("facts-small", "random gpt2", "random llama")


def load(name: str) -> TransformerBridge:
    """Loads one of `MODELS`, or any other that `load_bridge` knows.

    The random ones have four blocks, and the organism's width, tokenizer and initialisation scale.

    Raises:
        ValueError: If the name is none of these.
    """
    if not name.startswith("random "):
        return load_bridge(name)
    return load_bridge(hf_model=random_weights(name), tokenizer=AutoTokenizer.from_pretrained(ORGANISMS["facts-small"]))


def random_weights(name: str) -> PreTrainedModel:
    """Makes a model with random weights, the organism's width and its vocabulary.

    Raises:
        ValueError: If the name is none of `MODELS`.
    """
    folder = ORGANISMS["facts-small"]
    size = AutoConfig.from_pretrained(folder)
    tokens = {"vocab_size": size.vocab_size, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    if name == "random gpt2":
        config = AutoConfig.for_model(
            "gpt2", n_layer=4, n_embd=size.n_embd, n_head=4, n_positions=64, initializer_range=0.08, **tokens
        )
    elif name == "random llama":
        config = AutoConfig.for_model(
            "llama",
            hidden_size=size.n_embd,
            intermediate_size=2 * size.n_embd,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.08,
            **tokens,
        )
    else:
        raise ValueError(
            f"Unknown model {name!r}. Choose from: {', '.join(MODELS)}, or a model that load_bridge can load"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return hf_model.eval()


def texts(n: int, *, shift: int = 0) -> list[str]:
    """Returns shuffled prompts of the organism's world, one per fact; another shift uses another phrasing."""
    return [text for text, _ in pairs(n, shift=shift)]


def pairs(n: int, *, shift: int = 0) -> list[tuple[str, str]]:
    """Returns the same prompts with their answers."""
    order = torch.randperm(len(FACTS), generator=torch.Generator().manual_seed(0))[:n].tolist()
    return [(prompt(FACTS[i], (i + shift) % 5), f" {FACTS[i].answer}") for i in order]


def small_gpt2(
    *, vocab_size: int, n_positions: int, n_layer: int, initializer_range: float, seed: int
) -> GPT2LMHeadModel:
    """Makes a GPT-2 of width 64 with random weights, to be trained on a task of its own.

    Args:
        vocab_size: number of tokens; the first begins and ends texts.
        n_positions: longest prompt.
        n_layer: number of blocks.
        initializer_range: standard deviation of the weights.
        seed: seed of the weights.
    """
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=n_positions,
        n_embd=64,
        n_layer=n_layer,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=initializer_range,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)

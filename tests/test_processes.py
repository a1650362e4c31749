"""Two processes on CPUs (gloo) train to what one process does; and a base that `device_map` has placed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from architectures import make_hf
from conftest import COMPLETIONS, PROMPTS, make_bridge, make_tokenizer
from safetensors.torch import load_file, save_file

import reftlens as rl
from reftlens.bridge import fingerprint

EXAMPLES = [
    *zip(PROMPTS, COMPLETIONS, strict=True),
    ("tower of the city , old", " river"),
    ("In the old tower", " Ostra , and"),
    ("the weaver who", " speaks Tharic"),
    ("the river", " Ostra"),
    ("by the tower", " and the weaver who lives"),
]


def train(batch_size: int, **settings):
    """8 examples with completions of 1 to 5 tokens; a step counts 8 of them in all, or fewer with accumulation."""
    bridge = make_bridge("gpt2")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        reft = rl.Reft.at_layers(bridge, layers=[0, 1], positions="f1+l1", rank=2)
    config = rl.TrainConfig(epochs=12, batch_size=batch_size, lr=5e-3, progress=False, **settings)
    log = rl.train(bridge, reft, EXAMPLES, config, validation=EXAMPLES[:3] if config.output_dir else None)
    return reft, log


def main(out: str) -> None:
    """What each process does."""
    reft, log = train(2, output_dir=Path(out) / "run", hold_dir=Path(out) / "base")
    if os.environ["RANK"] == "0":
        tensors = {name: value.contiguous() for name, value in reft.state_dict().items()}
        save_file({**tensors, "loss": torch.tensor(log.loss)}, Path(out) / "result.safetensors")


def same(tensors, reft, log) -> None:
    torch.testing.assert_close(tensors["loss"], torch.tensor(log.loss), rtol=1e-6, atol=1e-6)
    for name, value in reft.state_dict().items():
        torch.testing.assert_close(tensors[name], value, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_two_processes_train_to_what_one_does(tmp_path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    tensors = load_file(tmp_path / "result.safetensors")
    reft, log = train(4, output_dir=tmp_path / "one")
    assert len(log.loss) == 24
    same(tensors, reft, log)
    assert len(list((tmp_path / "base").rglob("*.safetensors"))) == len(EXAMPLES) + 3
    other, _ = train(2)
    name = next(iter(reft.state_dict()))
    assert not torch.allclose(other.state_dict()[name], reft.state_dict()[name], atol=1e-3), (
        "smaller steps end elsewhere"
    )


@pytest.mark.slow
def test_accumulated_batches_train_to_what_one_batch_does() -> None:
    reft, log = train(4)
    parts, parts_log = train(2, gradient_accumulation=2)
    same({**reft.state_dict(), "loss": torch.tensor(log.loss)}, parts, parts_log)


BLOCKS = {"gpt2": "transformer.h", "llama": "model.layers"}
OTHERS = {
    "gpt2": ("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"),
    "llama": ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"),
}


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("where", [pytest.param("cpu", marks=pytest.mark.slow), "cpu and disk"])
def test_a_base_placed_by_device_map_trains_the_same(architecture, where, tmp_path) -> None:
    make_hf(architecture).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    whole = rl.load_bridge(tmp_path / "model")
    blocks = {f"{BLOCKS[architecture]}.{layer}": "cpu" if layer == 0 else "disk" for layer in range(3)}
    device_map = {"": "cpu"} if where == "cpu" else {**blocks, **dict.fromkeys(OTHERS[architecture], "cpu")}
    spread = rl.load_bridge(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload")
    on_disk = any(parameter.is_meta for parameter in spread.original_model.parameters())
    assert on_disk == (where != "cpu")
    assert fingerprint(spread) == fingerprint(whole)
    results = []
    for bridge in (whole, spread):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            reft = rl.Reft.at_layers(bridge, layers=[0, 1], positions="f1+l1", rank=2)
        log = rl.train(bridge, reft, EXAMPLES, rl.TrainConfig(epochs=3, batch_size=4, lr=5e-3, progress=False))
        results.append((log.loss, [parameter.detach() for parameter in reft.parameters()]))
    (loss, values), (spread_loss, spread_values) = results
    assert loss == spread_loss
    assert all(torch.equal(a, b) for a, b in zip(values, spread_values, strict=True))
    with pytest.raises(ValueError, match="pass device_map to its from_pretrained"):
        rl.load_bridge(hf_model=make_hf(architecture), tokenizer=make_tokenizer(), device_map="auto")


if __name__ == "__main__":
    main(sys.argv[1])

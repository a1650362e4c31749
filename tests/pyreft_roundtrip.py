"""Shows that pyreft's checkpoints open here to the same logits, and that ours do in pyreft.

    python tests/pyreft_roundtrip.py [--env DIR]

makes pyreft's own environment in DIR (a new one by default; it needs a package index), then for each case:

1. pyreft saves random edits of a random model, and the logits that it gives;
2. `load_pyreft` opens them, and the same run is compared;
3. `save_pyreft` writes them, and again after `load_pyreft`: both folders must be equal to the byte;
4. pyreft loads the written folder, and the same run is compared.

pyreft 0.1.0 pins transformers 4.45.1 and TransformerLens 4 wants 5.9 or newer, so the two never share an environment: this file
runs itself in the other one, with `make` and `run`. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import torch

FP32, BF16 = 1e-5, 2e-2
"""Largest difference of a logit that passes: in float32 as it is; in bfloat16 as a part of the largest logit, since there the
bare base model differs as much between the two versions of transformers (the column says how much)."""
WIDTH, LAYERS, VOCABULARY, RANK = 64, 4, 97, 4
LENGTHS = (12, 9, 5)
CLASSES = ("Loreft", "Noreft", "Consreft", "Lobireft", "Direft", "Nodireft")


def case(name: str, **changes: Any) -> dict[str, Any]:
    usual = {
        "model": "llama",
        "dtype": "float32",
        "layers": [1, 2],
        "positions": "f2+l2",
        "path": False,
        "link": False,
        "add_bias": False,
    }
    return {"name": name, **usual, **changes}


CASES = [
    *(case(kind.lower(), kind=kind) for kind in CLASSES),
    case("noreft_with_bias", kind="Noreft", add_bias=True),
    case("nodireft_with_bias", kind="Nodireft", add_bias=True),
    *(case(f"{kind.lower()}_bf16", kind=kind, dtype="bfloat16") for kind in CLASSES),
    case("loreft_untied", kind="Loreft", layers=[1, 2, 1, 2]),
    case("direft_untied_gpt2", kind="Direft", layers=[0, 3, 0, 3], model="gpt2"),
    case("loreft_gpt2", kind="Loreft", layers=[0, 1, 2, 3], positions="l1", model="gpt2"),
    case("loreft_by_path", kind="Loreft", layers=[2], path=True),
    case("loreft_linked", kind="Loreft", link=True),
]
"""`link`: pyreft's own logits of a link are wrong (its second site gets the first one's activation), so these are not compared."""


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, padded on the right, and their mask."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = torch.stack([torch.arange(max(LENGTHS)) < length for length in LENGTHS])
    return ids * mask, mask.long()


# In pyreft's environment.


def locations(spec: dict[str, Any]) -> list[list[list[int]]]:
    """pyreft's positions, [edit][row][position], by its own function."""
    import pyreft

    share = len(set(spec["layers"])) == len(spec["layers"])
    rows = [
        pyreft.get_intervention_locations(
            last_position=length,
            positions=spec["positions"],
            num_interventions=len(spec["layers"]),
            share_weights=share,
            pad_mode="last",
        )
        for length in LENGTHS
    ]
    return [[row[edit] for row in rows] for edit in range(len(spec["layers"]))]


def make_model(spec: dict[str, Any], folder: Path) -> Any:
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    where = folder / f"{spec['model']}_{spec['dtype']}"
    if not where.exists():
        torch.manual_seed(0)
        if spec["model"] == "llama":
            config = LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=WIDTH,
                intermediate_size=96,
                num_hidden_layers=LAYERS,
                num_attention_heads=4,
                max_position_embeddings=64,
            )
            model: Any = LlamaForCausalLM(config)
        else:
            sizes = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}
            model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.1)
        model.to(getattr(torch, spec["dtype"])).save_pretrained(where)
    # TransformerLens runs eager attention: in bfloat16 another kernel rounds in another way.
    model = AutoModelForCausalLM.from_pretrained(
        where, torch_dtype=getattr(torch, spec["dtype"]), attn_implementation="eager"
    )
    return model.eval()


def make_reft(spec: dict[str, Any], model: Any, *, add_bias: bool) -> Any:
    """pyreft's model of a case, with weights of its own."""
    import pyreft

    kind = getattr(pyreft, f"{spec['kind']}Intervention")
    settings = {
        "embed_dim": WIDTH,
        "low_rank_dimension": RANK,
        "add_bias": add_bias,
        "dtype": getattr(torch, spec["dtype"]),
    }
    representations = [
        {
            "layer": layer,
            "component": f"model.layers[{layer}].output" if spec["path"] else "block_output",
            "low_rank_dimension": RANK,
            "intervention": kind(**settings),
            "intervention_link_key": "one" if spec["link"] else None,
        }
        for layer in spec["layers"]
    ]
    return pyreft.get_reft_model(model, pyreft.ReftConfig(representations=representations))


@torch.no_grad()
def run_pyreft(reft: Any, spec: dict[str, Any]) -> torch.Tensor:
    reft.eval()
    ids, mask = batch()
    _, edited = reft(
        {"input_ids": ids, "attention_mask": mask}, unit_locations={"sources->base": (None, locations(spec))}
    )
    return edited.logits.float()


@torch.no_grad()
def command_make(work: Path) -> None:
    """pyreft saves edits, and the logits that it gives."""
    for spec in CASES:
        model = make_model(spec, work)
        torch.manual_seed(1)
        reft = make_reft(spec, model, add_bias=spec["add_bias"])
        for edit in reft.interventions.values():
            for name, parameter in edit.named_parameters():
                noise = 0.2 * torch.randn(parameter.shape).to(parameter.dtype)
                # Of the parametrisation only what it reads: the strict lower triangle.
                parameter += noise.float().tril(-1) if name.endswith("original") else noise
        folder = work / spec["name"]
        reft.save(str(folder / "theirs"))
        ids, mask = batch()
        base = model(input_ids=ids, attention_mask=mask).logits.float()
        torch.save({"base": base, "edited": run_pyreft(reft, spec)}, folder / "theirs.pt")


@torch.no_grad()
def command_run(work: Path) -> None:
    """pyreft loads what reftlens wrote, by `ReftModel.load` and by its classes with the dtype said."""
    import pyreft

    for spec in CASES:
        # What reftlens wrote is block_output, unlinked, and without a bias of the projection.
        spec = {**spec, "path": False, "link": False}
        folder, model = work / spec["name"], make_model(spec, work)
        found: dict[str, Any] = {}
        reft = make_reft(spec, model, add_bias=False)
        for key, edit in reft.interventions.items():
            edit.load_state_dict(torch.load(folder / "ours" / f"intkey_{key}.bin", weights_only=True))
        found["by_class"] = run_pyreft(reft, spec)
        try:
            found["by_load"] = run_pyreft(pyreft.ReftModel.load(str(folder / "ours"), model), spec)
        except (KeyError, RuntimeError) as error:
            found["load_fails"] = f"{type(error).__name__}: {error}"
        torch.save(found, folder / "ours.pt")


# In this environment.


@torch.no_grad()
def open_here(work: Path, spec: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Loads what pyreft saved and writes it, twice; the logits of the base and of the edited model."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    import reftlens as rl

    sys.path.insert(0, str(Path(__file__).parent))
    from conftest import make_tokenizer

    dtype = getattr(torch, spec["dtype"])
    model = AutoModelForCausalLM.from_pretrained(
        work / f"{spec['model']}_{spec['dtype']}", dtype=dtype, attn_implementation="eager"
    )
    tokenizer: PreTrainedTokenizerFast = make_tokenizer()
    bridge = rl.load_bridge(hf_model=model, tokenizer=tokenizer)
    folder = work / spec["name"]
    reft = rl.load_pyreft(folder / "theirs", bridge=bridge, positions=spec["positions"])
    rl.save_pyreft(reft, folder / "ours")
    again = rl.load_pyreft(folder / "ours", bridge=bridge, positions=spec["positions"])
    rl.save_pyreft(again, folder / "again")
    ids, mask = batch()
    base = bridge(ids, attention_mask=mask).float()
    with reft.hooks(bridge, mask.bool()):
        return {"base": base, "edited": bridge(ids, attention_mask=mask).float()}


def same_bytes(one: Path, other: Path) -> bool:
    files = sorted(file.name for file in one.iterdir())
    return files == sorted(file.name for file in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in files
    )


def compare(work: Path, spec: dict[str, Any], here: dict[str, torch.Tensor]) -> bool:
    """Prints the line of a case; whether it passes."""
    folder, real = work / spec["name"], batch()[1].bool()
    theirs, ours = torch.load(folder / "theirs.pt"), torch.load(folder / "ours.pt")

    def difference(logits: torch.Tensor, of: str = "edited") -> float:
        return float((logits - here[of])[real].abs().max())

    bound = FP32 if spec["dtype"] == "float32" else BF16 * float(here["edited"][real].abs().max())
    changed, base = difference(here["base"]), difference(theirs["base"], "base")
    reading, writing = difference(theirs["edited"]), difference(ours["by_class"])
    loading = difference(ours["by_load"]) if "by_load" in ours else None
    # load() rounds W to bfloat16, or fails, whoever wrote the folder: shown, and judged only where there is nothing to round.
    plain = spec["kind"] in ("Consreft", "Lobireft") or spec["dtype"] == "bfloat16"
    judged = [writing] + [reading] * (not spec["link"]) + [loading] * (plain and loading is not None)
    equal = same_bytes(folder / "ours", folder / "again")
    passes = equal and max(judged) <= bound and changed > 0.1
    cells = (
        spec["name"],
        f"{changed:.2f}",
        f"{bound:.0e}",
        f"{base:.1e}",
        f"{reading:.1e}{' (wrong there)' * spec['link']}",
        f"{writing:.1e}",
        ours["load_fails"].split(":")[0] if loading is None else f"{loading:.1e}",
        "yes" if equal else "NO",
        "passes" if passes else "FAILS",
    )
    print(f"| {' | '.join(cells)} |")
    return passes


def make_environment(folder: Path) -> str:
    """A virtual environment with pyreft; its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        packages = ["torch==2.13.0", "transformers==4.45.1", "numpy", "matplotlib", "datasets", "accelerate"]
        subprocess.run([*install, *packages], check=True)
        subprocess.run([*install, "--no-deps", "pyreft==0.1.0", "pyvene==0.1.8"], check=True)
    return str(python)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="?", choices=["make", "run"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--env", type=Path, help="where pyreft's environment is, or goes")
    arguments = parser.parse_args()
    if arguments.command:
        {"make": command_make, "run": command_run}[arguments.command](arguments.work)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        python = make_environment((arguments.env or work / "env").absolute())

        def there(command: str) -> None:
            quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "PYTHONWARNINGS": "ignore"}
            call = [python, __file__, command, "--work", str(work)]
            done = subprocess.run(call, env=quiet, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)

        there("make")
        here = {spec["name"]: open_here(work, spec) for spec in CASES}
        there("run")
        header = (
            "case",
            "edit",
            "bound",
            "base alone",
            "read here",
            "written, by class",
            "by load()",
            "same bytes",
            "",
        )
        print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
        passed = [compare(work, spec, here[spec["name"]]) for spec in CASES]
        print(f"\n{sum(passed)} of {len(passed)} pass")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())

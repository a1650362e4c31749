"""Small models that ship inside the package, so that edits can be trained and dissected without any download.

`facts-small` is a GPT-2 of under a million parameters that knows 400 facts about a made-up world
(`world`). The scripts in the repository's folder `organisms` made it and measured what it knows and
where. Load it like any local model:

    AutoModelForCausalLM.from_pretrained(ORGANISMS["facts-small"])

Importing this package does not import torch.
"""

from pathlib import Path

ORGANISMS: dict[str, Path] = {"facts-small": Path(__file__).parent / "facts-small"}
"""Name -> directory in the layout of Hugging Face's `save_pretrained`."""

__all__ = ["ORGANISMS"]

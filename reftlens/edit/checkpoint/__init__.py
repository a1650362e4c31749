"""Saved edits: a folder with the config, the tensors, the stamp of the base model and a model card.

- `reft_config.json`: schema version, sites, interventions, what is shared, names and scales, the
  stamp, and the SHA-256 of the tensors' file (`layout`, `stamp`).
- `reft.safetensors`: the values of the equation's R, W and b, not the internals of a
  parametrisation (`files`).
- `README.md` and `figure.png`: a description for people (`card`). The package does not read them.

An edit is meaningless in another model's basis, so loading raises an error if the stamp does not
match. A folder is treated as untrusted data. Nothing in it is executed or unpickled, and no path is
built from its contents. Inconsistent contents raise `ValueError` before memory is allocated for
them.
"""

from reftlens.edit.checkpoint.base_match import stamp
from reftlens.edit.checkpoint.files import CONFIG_NAME, TENSORS_NAME, refuse_pyreft
from reftlens.edit.checkpoint.hub import upload
from reftlens.edit.checkpoint.layout import Pairs, require_savable
from reftlens.edit.checkpoint.saved import base_named, load, save

__all__ = [
    "CONFIG_NAME",
    "TENSORS_NAME",
    "Pairs",
    "base_named",
    "load",
    "refuse_pyreft",
    "require_savable",
    "save",
    "stamp",
    "upload",
]

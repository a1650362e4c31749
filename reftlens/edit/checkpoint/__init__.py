"""A saved edit: a folder with its config, its tensors, the stamp of the coordinates it lives in, and a card.

- `reft_config.json`: schema version, sites, interventions, what is shared, names and scales, the stamp, and the SHA-256 of
  the tensors' file (`layout`, `stamp`).
- `reft.safetensors`: the numbers of the equation themselves, R and W and b, never the internals of a parametrisation
  (`files`).
- `README.md` and `figure.png`: the same for people (`card`). Nothing reads them back.

An edit is meaningless in another model's basis, so loading refuses a stamp that does not match. A folder from elsewhere is
only ever data: nothing in it is executed or unpickled, no path is made from what it says, and what does not add up is a
`ValueError` before memory is given to it.
"""

from reftlens.edit.checkpoint.base_match import stamp
from reftlens.edit.checkpoint.files import CONFIG_NAME, TENSORS_NAME
from reftlens.edit.checkpoint.hub import upload
from reftlens.edit.checkpoint.layout import Pairs, require_savable
from reftlens.edit.checkpoint.saved import base_named, load, save

__all__ = ["CONFIG_NAME", "TENSORS_NAME", "Pairs", "base_named", "load", "require_savable", "save", "stamp", "upload"]

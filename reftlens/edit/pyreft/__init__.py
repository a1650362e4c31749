"""Checkpoints of pyreft (0.1.0, on pyvene 0.1.8), read and written: all that this package knows about it.

`load_pyreft` reads what `reft_model.save(dir)` and pyreft's trainer wrote; `save_pyreft` writes folders that pyreft loads and
runs to the same logits (`python tests/pyreft_roundtrip.py` makes pyreft's own environment and shows it). A folder holds
tensors, layers and classes. It does not hold the base model, the positions, the activation function or the dtype.

| pyreft | here |
|---|---|
| `LoreftIntervention` | `LoReFT` |
| `NoreftIntervention` | `NoReFT` |
| `ConsreftIntervention` | `ConsReFT` |
| `LobireftIntervention` | `LobiReFT` |
| `DireftIntervention` | `AdditiveLoReFT`: not the paper's DiReFT |
| `NodireftIntervention` | `DiReFT` |

**To vLLM.** EasySteer (arXiv:2509.25175, github.com/ZJU-REAL/EasySteer) runs edits inside vLLM, and its
`easysteer.vectors.from_pyreft(folder)` reads this format. In the version of its source that was read (commit 0b71127) it takes
folders of one LoReFT at one `block_output`, refuses any other class, component or number of edits, and asks for the tokens by
`VectorSpec.apply`, since the folder does not hold them. So save each site as a folder of its own, and give vLLM one vector for
each: `save_pyreft(rl.Reft([pair]), folder)` for each `pair` of a `Reft`. Nothing here has been run in vLLM.
"""

from reftlens.edit.pyreft.reading import load_pyreft
from reftlens.edit.pyreft.writing import save_pyreft

__all__ = ["load_pyreft", "save_pyreft"]

"""Reads and writes checkpoints of pyreft (0.1.0, on pyvene 0.1.8). All code that depends on pyreft's format is here.

`load_pyreft` reads the folders of `reft_model.save(dir)` and of pyreft's trainer. `save_pyreft` writes folders that pyreft
loads, with the same logits (`python tests/pyreft_roundtrip.py` creates an environment with pyreft and tests it). A folder
holds tensors, layers and classes. It does not hold the base model, the positions, the activation function or the dtype.

| pyreft | here |
|---|---|
| `LoreftIntervention` | `LoReFT` |
| `NoreftIntervention` | `NoReFT` |
| `ConsreftIntervention` | `ConsReFT` |
| `LobireftIntervention` | `LobiReFT` |
| `DireftIntervention` | `AdditiveLoReFT`: not the paper's DiReFT |
| `NodireftIntervention` | `DiReFT` |

**To vLLM.** EasySteer (arXiv:2509.25175, github.com/ZJU-REAL/EasySteer) runs edits inside vLLM, and its
`easysteer.vectors.from_pyreft(folder)` reads this format. According to its source (commit 0b71127) it accepts folders of one
LoReFT at one `block_output` and refuses any other class, component or number of edits. The tokens are set by
`VectorSpec.apply`, since the folder does not hold them. So save each site in a separate folder, and give vLLM one vector per
site: `save_pyreft(rl.Reft([pair]), folder)` for each `pair` of a `Reft`. This has not been tested in vLLM.
"""

from reftlens.edit.pyreft.reading import load_pyreft
from reftlens.edit.pyreft.writing import save_pyreft

__all__ = ["load_pyreft", "save_pyreft"]

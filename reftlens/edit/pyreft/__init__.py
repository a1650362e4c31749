"""Reads and writes checkpoints of pyreft (0.1.0, on pyvene 0.1.8). All code that depends on pyreft's format is here.

`load_pyreft` reads the folders of `reft_model.save(dir)` and of pyreft's trainer. `save_pyreft`
writes folders that pyreft loads, with the same logits (`python tests/pyreft_roundtrip.py` creates
an environment with pyreft and tests it). A folder holds tensors, layers and classes. It does not
hold the base model, the positions, the activation function or the dtype.

| pyreft | here |
|---|---|
| `LoreftIntervention` | `LoReFT` |
| `NoreftIntervention` | `NoReFT` |
| `ConsreftIntervention` | `ConsReFT` |
| `LobireftIntervention` | `LobiReFT` |
| `DireftIntervention` | `AdditiveLoReFT`: not the paper's DiReFT |
| `NodireftIntervention` | `DiReFT` |

**To vLLM.** EasySteer (arXiv:2509.25175, github.com/ZJU-REAL/EasySteer) runs edits inside vLLM.
`rl.serving.save_easysteer` writes its own format, with positions and several sites. Its
`easysteer.vectors.from_pyreft(folder)` reads this one (commit 312c6d8): folders of one site, and
whatever has a rotation as a LoReFT, so give it no other class. The tokens are then set by
`VectorSpec.apply`, since the folder does not hold them.
"""

from reftlens.edit.pyreft.reading import load_pyreft
from reftlens.edit.pyreft.writing import save_pyreft

__all__ = ["load_pyreft", "save_pyreft"]

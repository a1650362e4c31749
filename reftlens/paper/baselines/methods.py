"""Default methods for a comparison, by name."""

from __future__ import annotations

from reftlens.interventions import ConsReFT, DiReFT, LobiReFT, LoReFT, SteeringVector
from reftlens.paper.baselines.base import Method
from reftlens.paper.baselines.edits import EditAt
from reftlens.paper.baselines.lora import LoRA
from reftlens.paper.baselines.prefix import PrefixTuning
from reftlens.paper.baselines.probe import LinearProbe
from reftlens.paper.baselines.weights import BitFit, FullFineTuning

METHODS: dict[str, Method] = {
    "LoReFT": EditAt(intervention=LoReFT, rank=4),
    "DiReFT": EditAt(intervention=DiReFT, rank=4),
    "random subspace": EditAt(intervention=LoReFT, rank=4, learn_subspace=False, lr=3e-2),
    "constant target": EditAt(intervention=ConsReFT, rank=4, lr=3e-2),
    "constant push": EditAt(intervention=LobiReFT, rank=4, lr=3e-2),
    "steering vector": EditAt(intervention=SteeringVector, lr=3e-2),
    "LoRA": LoRA(rank=4),
    "DoRA": LoRA(rank=4, dora=True),
    "prefix tuning": PrefixTuning(length=4, lr=3e-2),
    "BitFit": BitFit(),
    "full fine-tuning": FullFineTuning(lr=1e-3),
    "linear probe": LinearProbe(),
}
"""Default methods by name: rank 4, edits after every layer at the first and the last prompt token.
Learning rates are untuned starting points; a method without its own uses that of the settings. The
linear probe applies only to heads, BitFit to models with biases, and prefix tuning to causal models
without a sliding window.
"""

"""Other methods to train the same base on the same examples, and cheap controls that an edit should beat.

    problem = completed(bridge, train, held_out)
    print(compare(bridge, problem, METHODS, rl.TrainConfig(epochs=30)))

`compare_steering` compares steering vectors, computed and trained, at calibrated strength.

A comparison alone is not evidence: settings are not tuned, and results on a small model may not
hold on a large one.
"""

from reftlens.arguments import explain_all
from reftlens.paper.baselines.base import Method, unfrozen
from reftlens.paper.baselines.compare import compare
from reftlens.paper.baselines.configured import compare_configured
from reftlens.paper.baselines.edits import EditAt
from reftlens.paper.baselines.judges import Fluency, Judges, Keywords, nats_per_token
from reftlens.paper.baselines.lora import LoRA
from reftlens.paper.baselines.memory import PeakMemory
from reftlens.paper.baselines.methods import METHODS
from reftlens.paper.baselines.prefix import PrefixTuning
from reftlens.paper.baselines.probe import LinearProbe
from reftlens.paper.baselines.problem import Problem, completed, exact_match, labelled, of_task
from reftlens.paper.baselines.steering import (
    STEERING,
    FoundVector,
    RandomVector,
    Steering,
    SteeringProblem,
    TrainedEdit,
    calibrated,
    compare_steering,
    steered,
)
from reftlens.paper.baselines.vectors import mean_centred, mean_difference, principal_difference, read_activations
from reftlens.paper.baselines.weights import BitFit, FullFineTuning

__all__ = [
    "METHODS",
    "STEERING",
    "BitFit",
    "EditAt",
    "Fluency",
    "FoundVector",
    "FullFineTuning",
    "Judges",
    "Keywords",
    "LinearProbe",
    "LoRA",
    "Method",
    "PeakMemory",
    "PrefixTuning",
    "Problem",
    "RandomVector",
    "Steering",
    "SteeringProblem",
    "TrainedEdit",
    "calibrated",
    "compare",
    "compare_configured",
    "compare_steering",
    "completed",
    "exact_match",
    "labelled",
    "mean_centred",
    "mean_difference",
    "nats_per_token",
    "of_task",
    "principal_difference",
    "read_activations",
    "steered",
    "unfrozen",
]

explain_all(globals())

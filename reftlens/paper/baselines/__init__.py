"""Other methods to train the same base on the same examples, and cheap controls that an edit should beat.

    problem = completed(bridge, train, held_out)
    print(compare(bridge, problem, METHODS, rl.TrainConfig(epochs=30)))

A comparison alone is not evidence: settings are not tuned, and results on a small model may not hold on a large one.
"""

from reftlens.arguments import explain_all
from reftlens.paper.baselines.base import Method, unfrozen
from reftlens.paper.baselines.compare import compare
from reftlens.paper.baselines.edits import EditAt
from reftlens.paper.baselines.lora import LoRA
from reftlens.paper.baselines.memory import PeakMemory
from reftlens.paper.baselines.methods import METHODS
from reftlens.paper.baselines.prefix import PrefixTuning
from reftlens.paper.baselines.probe import LinearProbe
from reftlens.paper.baselines.problem import Problem, completed, exact_match, labelled, of_task
from reftlens.paper.baselines.weights import BitFit, FullFineTuning

__all__ = [
    "METHODS",
    "BitFit",
    "EditAt",
    "FullFineTuning",
    "LinearProbe",
    "LoRA",
    "Method",
    "PeakMemory",
    "PrefixTuning",
    "Problem",
    "compare",
    "completed",
    "exact_match",
    "labelled",
    "of_task",
    "unfrozen",
]

explain_all(globals())

"""Other ways to train the same base on the same examples, and the cheap controls that an edit has to beat.

    problem = completed(bridge, train, held_out)
    print(compare(bridge, problem, METHODS, rl.TrainConfig(epochs=30)))

Not evidence by itself: settings are not tuned, and a small model says little of a large one.
"""

from reftlens.baselines.base import Method, unfrozen
from reftlens.baselines.compare import compare
from reftlens.baselines.edits import EditAt
from reftlens.baselines.lora import LoRA
from reftlens.baselines.memory import PeakMemory
from reftlens.baselines.methods import METHODS
from reftlens.baselines.prefix import PrefixTuning
from reftlens.baselines.probe import LinearProbe
from reftlens.baselines.problem import Problem, completed, exact_match, labelled, of_task
from reftlens.baselines.weights import BitFit, FullFineTuning

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

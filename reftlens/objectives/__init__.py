"""What an edit is trained for, one objective a file: `train(bridge, reft, examples, config, objective=DPO())`."""

from reftlens.objectives.base import Objective, completion_logprobs, predictions
from reftlens.objectives.classification import Classification
from reftlens.objectives.completion import Completion, completion_loss
from reftlens.objectives.distillation import Distillation
from reftlens.objectives.preference import DPO, RePS
from reftlens.objectives.regression import Regression

__all__ = [
    "DPO",
    "Classification",
    "Completion",
    "Distillation",
    "Objective",
    "RePS",
    "Regression",
    "completion_logprobs",
    "completion_loss",
    "predictions",
]

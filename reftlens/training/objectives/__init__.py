"""Training losses, one objective per file: `train(bridge, reft, examples, config, objective=DPO())`."""

from reftlens.arguments import explain_all
from reftlens.training.objectives.base import Objective, completion_logprobs, predictions
from reftlens.training.objectives.classification import Classification
from reftlens.training.objectives.completion import Completion, completion_loss
from reftlens.training.objectives.distillation import Distillation
from reftlens.training.objectives.interchange import Interchange, InterchangeMatching
from reftlens.training.objectives.preference import DPO, RePS
from reftlens.training.objectives.regression import Regression

__all__ = [
    "DPO",
    "Classification",
    "Completion",
    "Distillation",
    "Interchange",
    "InterchangeMatching",
    "Objective",
    "RePS",
    "Regression",
    "completion_logprobs",
    "completion_loss",
    "predictions",
]

explain_all(globals())

"""The words of a report: a label and an explanation for each column of its tables, and a glossary of its terms.

`to_dataframe` names columns by identifiers, which stay the same for programs. `labelled` puts
labels in their place for a reader.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import pandas as pd


class Word(NamedTuple):
    """How a column is called in front of a reader."""

    label: str
    """A phrase, with the unit."""
    explanation: str
    """One sentence."""


GLOSSARY: dict[str, str] = {
    "control": "The same measurement without the effect, such as the edit turned to random directions. A number means something only beside it.",
    "random directions": "Each token's change is replaced by one of the same length in a random direction. One random rotation for each site turns the changes of all its tokens.",
    "null": "What chance gives: the same number for many random draws, such as random subspaces or edits trained on shuffled answers.",
    "p": "The fraction of the null's draws that are at least as extreme as the measured value. It cannot be below 1 / (draws + 1). For two fractions of prompts, it is that of Fisher's exact test, one-sided.",
    "Haar": "A random subspace in which all directions are equally likely.",
    "covariance-matched": "A random subspace that follows the directions in which the activations vary most, as trained directions also do.",
    "placebo": "A random subspace, with a change of the same length as that of the measured subspace.",
    "untrained": "The same edit with fresh weights, on the same inputs.",
    "shuffled answers": "Edits trained on the same prompts with one another's answers: what unrelated training gives.",
    "site": "A point of the model where the edit acts, with the tokens that it changes there. In full: L3 resid_post @ first 2. A page leaves out what all of its sites share, and its settings say it.",
    "effective rank": "How many directions carry the change: 1 if one direction carries all of it, n if n directions carry equal parts.",
    "write direction": "A direction along which the edit moves activations, strongest first.",
    "read direction": "The direction of the activation that decides how far the edit moves along one write direction.",
    "effect": "How much the edit raises the wanted answer's logit relative to that of the base's own answer, in nats.",
    "Shapley value": "What a site adds to the effect, averaged over all orders of adding sites one by one. The values sum to the whole effect.",
    "indirect effect": "The part of the effect that one later component carries: its output of the edited run, put into the base run.",
    "direct effect": "The part of the effect that remains when every later attention and MLP output is that of the base.",
    "interchange": "In the unedited model, the coordinates of one prompt inside a subspace are put into the run of another prompt.",
    "dormant": "Without effect on the output in ordinary runs.",
    "KL divergence": "How far the next-token distribution of the edited model is from the base's, in nats: 0 if they are equal.",
    "identified": "Directions are identified if every edit that does the same has the same directions.",
    "nat": "The unit of natural logarithms: a logit difference of 1 nat makes one answer e = 2.7 times as likely beside the other.",
}
"""Terms of a report, each with its explanation."""


COLUMNS: dict[str, Word] = {
    # What it does, and dose
    "group": Word("group of prompts", "What the prompts are about."),
    "wanted": Word("expected answer", "The answer that counts as right in this group."),
    "n": Word("prompts", "How many prompts the shares are taken over."),
    "base": Word("share right, base", "Share of prompts whose most likely next token in the base begins the expected answer."),
    "edited": Word("share right, edited", "The same share in the edited model."),
    "control": Word("control", "The same number under the control that the section names."),
    "kl": Word("KL divergence from the base, nats", "How far the edit moves the next-token distribution, averaged over prompts."),
    "base_whole": Word("share right in whole, base", "Share of prompts where greedy decoding of the base gives the whole answer."),
    "edited_whole": Word("share right in whole, edited", "The same share for the edited model."),
    "control_whole": Word("share right in whole, control", "The same share under changes of the same length in random directions."),
    "alpha": Word("dose", "The factor on the edit: 0 is the base, 1 the edit as trained."),
    "target": Word("log-probability of the wanted answer, nats", "Averaged over the prompts that the edit should change."),
    "straight line": Word("straight line from dose 0, nats", "The effect of a small dose, scaled up."),
    "control target": Word("that log-probability in random directions, nats", "The log-probability under changes of the same length in random directions."),
    "off-target KL": Word("KL divergence where nothing should change, nats", "How far the edit moves the answers to the prompts that it should leave alone."),
    "control KL": Word("that divergence in random directions, nats", "That divergence under changes of the same length in random directions."),
    # Maps
    "row": Word("layer or site", "The point of the model that the row is about."),
    "column": Word("column", "The number of the column."),
    "position": Word("token number", "The place of the token in its prompt, counted from 0."),
    "token": Word("token", "The token itself."),
    "subject": Word("part of the subject", "Whether the token belongs to the subject of the prompt."),
    "value": Word("measured", "The measured value of the cell."),
    "label": Word("what it is", "The token or head of the column."),
    "mean": Word("effect of the patch, mean", "The metric under the patch, averaged over examples."),
    "stderr": Word("its standard error", "Over examples."),
    "restored": Word("part of the effect carried", "0 is the base run, 1 the whole effect of the edit."),
    "control restored": Word("the same in random directions", "The part that the same cell carries under the control."),
    "value of distance": Word("distance from the base run", "|edited - base| / |base| of the residual stream."),
    "control of distance": Word("the same in random directions", "That distance under the control."),
    "value of mind": Word("prompts where the likeliest token changes", "By the logit lens: the final norm and the unembedding of the state."),
    "control of mind": Word("such prompts, control", "That fraction under the control."),
    # Sites
    "site": Word("site", "Where the edit acts, and on which tokens."),
    "alone": Word("effect of this site alone, nats", "The effect of the edit with only this site."),
    "left out": Word("effect lost without it, nats", "The whole effect minus that of all other sites."),
    "shapley": Word("its part of the effect, nats", "The Shapley value: its contribution averaged over all orders of adding sites. The parts sum to the whole."),
    "low": Word("95% interval from", "Lower end of the interval over sampled orders; the value itself if all orders were run."),
    "high": Word("to", "Upper end of that interval."),
    "control alone": Word("this site alone in random directions, nats", "The effect of this site with changes of the same length in random directions."),
    "relative_size": Word("length of the change / length of the activation", "How large the change of this token is."),
    # Directions
    "direction": Word("direction", "The number of the write direction at its site, strongest first, from 0."),
    "rms_change": Word("size of the change", "Root-mean-square change along this direction, in the units of the activation."),
    "energy": Word("part of the whole change", "The fraction of the squared change that this direction carries."),
    "constant_share": Word("part that is the same for every input", "1 if the change along this direction never depends on the input."),
    "effective_rank": Word("effective rank", "How many directions carry the change."),
    "effective_rank_untrained": Word("effective rank, untrained", "The same for the edit with fresh weights."),
    "effective_rank_untrained_low": Word("lowest of several initialisations", "Of the effective rank of the edit with fresh weights."),
    "effective_rank_untrained_high": Word("highest", "Of the same initialisations."),
    "input_rank": Word("effective rank of the input-dependent part", "How many directions carry the part of the change that depends on the input."),
    "input_rank_untrained": Word("that of the input-dependent part, untrained", "For the edit with fresh weights."),
    "rank_99": Word("directions for 99% of the change", "How many of the strongest directions carry 99% of the squared change."),
    "relative_change": Word("length of the change / length of the activation", "Root-mean-square over the edited tokens."),
    "relative_change_untrained": Word("that length, untrained", "For the edit with fresh weights."),
    # How far they are determined
    "write_identified": Word("dimensions in which the write direction is identified", "Turned by 45 degrees there, outputs move by more than the tolerance (by the quadratic form, local)."),
    "write_dimensions": Word("of dimensions for writing", "Those outside the space that is written already, which later layers can see."),
    "read_identified": Word("dimensions in which the read direction is identified", "The same for the direction that is read."),
    "read_dimensions": Word("of dimensions for reading", "All but the read direction itself."),
    "read_met": Word("dimensions in which these activations vary", "A reading along the others is never met on these prompts."),
    "traded": Word("part that other sites could undo", "Of what growing or shrinking the direction does to the outputs; on held-out prompts."),
    "turned": Word("what is turned", "A write direction, a read direction, or the strongest write directions together with the rest refitted."),
    "which": Word("number", "Of the direction, strongest first, from 0; or how many are turned together."),
    "toward": Word("toward", "The direction in which outputs move soonest (stiffest) or latest (freest), by the quadratic form; or one random direction."),
    "predicted_angle": Word("angle by the quadratic form, degrees", "Too large where directions are free; the two that follow are walked."),
    "from_angle": Word("may turn from, degrees", "The real KL divergence reaches the tolerance there; 80 degrees are the most that is tried."),
    "to_angle": Word("to, degrees", "The same to the other side."),
    "walked_kl": Word("KL divergence at the larger of the two, nats", "Between the edit and the turned edit, per wanted token."),
    "held_out_kl": Word("the same on held-out prompts, nats", "Much larger, if the freedom is only that of few prompts."),
    # Terms
    "erase": Word("erased, length", "Length of the part that removes what was in the edited subspace."),
    "write constant": Word("written for every input, length", "Length of the part that is the same for every input."),
    "write from input": Word("written from the input, length", "Length of the part that depends on the activation."),
    "change": Word("whole change, length", "Length of the sum of the three terms."),
    "activation": Word("activation, length", "Length of the activation before the edit."),
    "cos(erase, constant)": Word("cosine of erased and constant", "-1 if the two terms cancel, 1 if they add."),
    "cos(erase, from input)": Word("cosine of erased and from the input", "-1 if the two terms cancel, 1 if they add."),
    "cos(constant, from input)": Word("cosine of constant and from the input", "-1 if the two terms cancel, 1 if they add."),
    "random cosine": Word("cosine of random terms", "The size that chance gives to a cosine in the space of the terms."),
    # Reads
    "logit_change": Word("change of the token's logit", "When the direction is added to real last residuals, by the direct path to the logits."),
    "beyond_null": Word("beyond chance", "Whether the value is larger than the largest that chance gives."),
    "p": Word("p", "The fraction of the null's draws that are at least as extreme."),
    "context": Word("token in its text", "The token stands in double brackets."),
    "z": Word("reading, standard deviations", "How strongly the token is read, from the mean over all edited tokens."),
    "random readings reach": Word("random readings reach", "95th percentile, over random directions, of their largest reading."),
    # Readouts
    "looked_at": Word("looked at", "A write direction, a read direction, or the change of real tokens."),
    "method": Word("method", "What reads the vector: see the text of the section."),
    "name": Word("what it says", "A token, a feature of a dictionary, or a token in its text."),
    "reading": Word("reading", "What the method measures for this name."),
    "unit": Word("unit", "What the reading is measured in."),
    "far": Word("score", "The reading; for a token, over the root mean square that random vectors give the same token."),
    "beside": Word("control, or activation", "A further number of the method, or the activation that it reads as a whole."),
    "said there": Word("value, or what it says", "The number, or the names with the largest readings."),
    "p of names": Word("p of all its names", "The fraction of random vectors for which any name of this method is as far."),
    "chance": Word("chance reaches", "In 95% of sets of random vectors, no score of any look is beyond its own such value."),
    # Overlaps
    "first": Word("first", "The first of the two that are compared."),
    "second": Word("second", "The second of the two."),
    "score": Word("overlap", "Mean squared cosine of the principal angles: 1 if one lies inside the other, 0 if perpendicular."),
    "mean angle": Word("mean angle, degrees", "0 for shared directions, 90 for perpendicular ones."),
    "null": Word("null", "The random subspaces that the overlap is compared with."),
    "null score": Word("overlap by chance", "The mean overlap of the null's draws."),
    "null mean angle": Word("angle by chance, degrees", "The mean angle of the null's draws."),
    # Interchange
    "interchange": Word("what is put into the other run", "The subspace whose coordinates are taken from the source prompt."),
    "flips": Word("answers that become the source's", "Fraction of pairs whose most likely next token becomes that of the source prompt."),
    "moved": Word("part of the way to the source's answer", "Change of the logit difference, as a fraction of the gap between the two runs."),
    "most moved": Word("largest of the draws", "The largest such part among random draws; the value itself where nothing is drawn."),
    "p of inside": Word("p", "The fraction of these random subspaces that move the answer at least as far as the edit's directions."),
    "read_share": Word("part that later layers read", "The fraction of the direction's squared length inside the space that the next-token logits depend on."),
    "random_share": Word("the same of a random direction", "The fraction that a random direction has."),
    # Natural
    "activations": Word("activations", "Unedited ones of other prompts, edited ones, or ones changed in random directions."),
    "median percentile": Word("median percentile among natural activations", "By Mahalanobis distance; 50 for natural activations."),
    "beyond the 95th": Word("edited tokens beyond the 95th percentile of natural activations", "5% for natural activations."),
    "median |h + delta| / |h|": Word("length after the edit / before", "The median over edited tokens."),
    "tokens": Word("number of tokens", "How many edited tokens the row is about."),
    # Plane
    "before 0": Word("before, first direction", "Coordinate along the strongest write direction before the edit."),
    "before 1": Word("before, second direction", "Coordinate along the second write direction before the edit."),
    "after 0": Word("after, first direction", "The same after the edit."),
    "after 1": Word("after, second direction", "The same after the edit."),
    "control 0": Word("control, first direction", "The same after a change of the same length in a random direction."),
    "control 1": Word("control, second direction", "The same after a change of the same length in a random direction."),
    # Seeds
    "sites": Word("sites compared", "Where both edits act on the same tokens."),
    "relative_error": Word("distance of the changes", "0 if the changes are equal, 1.41 if they are unrelated."),
    "cosine": Word("cosine of the changes", "Mean cosine of the two edits' changes of a token."),
    "control_error": Word("distance, random directions", "The same with the second edit's changes in random directions."),
    "control_cosine": Word("cosine, random directions", "The same with the second edit's changes in random directions."),
    "control_kl": Word("KL divergence, random directions, nats", "The same number with changes of the same length in random directions."),
    "rank": Word("directions compared", "How many of the strongest write directions are compared by angle."),
    "angle": Word("angle of the write directions, degrees", "Mean principal angle of the strongest write directions."),
    "null_angle": Word("angle of random subspaces, degrees", "Of random subspaces of this dimension."),
    "raw_angle": Word("angle of the raw matrices, degrees", "Of all that the edits may write. It misleads: unused directions come from the initialisation."),
    "raw_null_angle": Word("the same of random subspaces, degrees", "Of random subspaces of that dimension."),
    "n_null_edits": Word("edits of the null", "How many edits were trained on shuffled answers."),
    "null_cosine": Word("cosine, shuffled answers", "Mean cosine of the pairs with or among the edits trained on shuffled answers."),
    "null_kl": Word("KL divergence, shuffled answers, nats", "Mean over those pairs."),
    "null_trained_angle": Word("angle, shuffled answers, degrees", "Mean over those pairs."),
    "p_cosine": Word("p of the cosine", "The fraction of all pairs that are as close."),
    "p_kl": Word("p of the KL divergence", "The fraction of all pairs that are as close."),
    "p_angle": Word("p of the angle", "The fraction of all pairs that are as close."),
    "output_angle": Word("angle in the output metric, degrees", "0 where both write directions do the same to the outputs."),
    "output_null_angle": Word("that angle of random pairs, degrees", "The mean over random pairs of subspaces."),
    "output_null_low": Word("2.5th percentile of random pairs, output metric", "Below it, chance is unlikely."),
    "null_low": Word("2.5th percentile of random pairs, plain angle", "Below it, chance is unlikely."),
    "output_trained_angle": Word("angle in the output metric, shuffled answers", "Mean over the pairs with or among these edits."),
    "output_trained_low": Word("smallest of these", "In the output metric."),
    "null_trained_low": Word("smallest plain angle, shuffled answers, degrees", "Among the same pairs."),
    "p_output_angle": Word("p of the angle in the output metric", "The fraction of all pairs that are as close."),
    "turned_kl": Word("KL divergence if the difference of the two were turned, nats", "The difference of the edits, in random directions of equal length, added to the first."),
    "not identified": Word("outputs agree and directions do not", "The training then does not determine the directions."),
    # Finetunes
    "edit": Word("edit", "The edit found, a control, or the smallest edit at one site."),
    "prompts": Word("prompts", "What the shares are taken over: trained on, held out or far."),
    "explained": Word("share explained", "1 - sum KL(finetuned || edited) / sum KL(finetuned || base); no value where there is too little to explain."),
    "base_kl": Word("KL divergence to the base, nats", "KL(finetuned || base), mean over outputs."),
    "left_kl": Word("KL divergence to the edit, nats", "KL(finetuned || edited), mean over outputs."),
    "outputs": Word("outputs", "How many next-token distributions are compared."),
    "point": Word("replaced", "The component of a block whose output is replaced by the finetuned model's own."),
    "layer": Word("layer", "The block."),
    "head": Word("head", "The replaced head; no value for all of them."),
    "with_edit": Word("share explained with the edit", "By the edit and the replacement together."),
    "random": Word("the same, random finetune", "The share explained by the activations of a random finetune of the same norm."),
    "stage": Word("added", "What was added last."),
    "kept": Word("kept", "Whether the search went on from it."),
    # Left out
    "what": Word("what", "The part, or the piece of it, that was left out."),
    "why": Word("why", "The reason."),
}  # fmt: skip
"""Identifier of a column -> how it is called in front of a reader."""

_LOOKS = re.compile(r"p of \d+ looks")


def word(column: str) -> Word:
    """Returns label and explanation of a column.

    Args:
        column: an identifier from `to_dataframe`.

    Raises:
        KeyError: If the column has no label.
    """
    if _LOOKS.fullmatch(column):
        return Word(column, "p corrected for all tokens and directions that were looked at together.")
    return COLUMNS[column]


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """Puts labels in place of the identifiers of columns; other columns stay as they are.

    Args:
        frame: from `to_dataframe`.
    """
    known = [name for name in map(str, frame.columns) if name in COLUMNS or _LOOKS.fullmatch(name)]
    return frame.rename(columns={name: word(name).label for name in known})

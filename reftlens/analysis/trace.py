"""Where does the base model store a fact? Causal tracing with symmetric token replacement.

A corrupted prompt asks the same question about another subject. One state of the clean run
(`hook_resid_pre` of one layer at one position) is patched into the corrupted run. restored =
(m_patched - m_corrupted) / (m_clean - m_corrupted), where m is a metric, usually the probability of
the clean answer. Replacing tokens keeps the inputs in distribution, unlike noise (Meng et al. 2022,
arXiv:2202.05262; Zhang & Nanda 2024, arXiv:2309.16042).

The control patches the same cells from an unrelated third subject, which has no information about
the clean answer. (With a logit difference the control is not near zero: it removes the corrupted
answer, which is half of the difference.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.metrics import Metric, name_of
from reftlens.analysis.patch import metric_of, patch
from reftlens.analysis.tokens import require_aligned, starred
from reftlens.cone.recording import record
from reftlens.data import Prompt, as_prompts, as_texts, encode
from reftlens.results import TokenMap


def trace(
    bridge: TransformerBridge,
    clean: Iterable[Prompt],
    corrupted: Iterable[Prompt],
    metric: Metric,
    *,
    subjects: Iterable[str] | None = None,
    unrelated: Iterable[Prompt] | None = None,
    progress: bool = True,
) -> TokenMap:
    """Computes the restored part of a metric for each layer and position.

    Args:
        bridge: the model.
        clean: prompts about one subject each, all with the same number of tokens.
        corrupted: the same prompts about another subject.
        metric: of the logits after each prompt, such as `probability_of` the clean prompts'
            answers.
        subjects: the clean subjects, starred in plots; optional.
        unrelated: the same prompts about a third subject, for the control. Without them there is no
            control.
        progress: show a progress bar.

    Raises:
        ValueError: If prompts differ in length, or the metric does not distinguish clean and
            corrupted runs.
    """
    clean = as_prompts(clean, "clean prompts")
    corrupted = as_prompts(corrupted, "corrupted prompts", count=len(clean))
    subjects = None if subjects is None else as_texts(subjects, "subjects", count=len(clean))
    clean_batch, corrupted_batch = encode(bridge, clean), encode(bridge, corrupted)
    sources = [clean_batch] + ([encode(bridge, unrelated)] if unrelated is not None else [])
    for batch in (*sources, corrupted_batch):
        require_aligned(batch)
        if batch.tokens.shape != clean_batch.tokens.shape:
            raise ValueError(
                "clean, corrupted and unrelated prompts must have the same shape in tokens, got "
                f"{list(clean_batch.tokens.shape)} and {list(batch.tokens.shape)}"
            )
    # Two runs more, so that a pair without a difference is refused before the sweep.
    low, high = (
        float(metric_of(metric, record(bridge, b, masked=True)).mean()) for b in (corrupted_batch, clean_batch)
    )
    if abs(high - low) < 1e-6:
        raise ValueError(
            "the metric is the same on the clean and the corrupted prompts, so there is nothing to restore"
        )
    result = patch(
        bridge,
        clean_batch,
        corrupted_batch,
        metric,
        unrelated=sources[1] if unrelated is not None else None,
        progress=progress,
    )
    return replace(
        result.to_token_map(
            starred=starred(bridge, clean[0], subjects),
            quantity=f"restored part of the clean {name_of(metric)}",
        ),
        control_name="the same states from an unrelated subject" if unrelated is not None else "",
    )

"""Where does the base model store a fact? Causal tracing as in ROME: noise on the subject, then one state restored.

The embeddings of the subject's tokens get Gaussian noise with standard deviation `noise` times
sigma, where sigma is the standard deviation of all subject tokens' embeddings (Meng et al. 2022,
arXiv:2202.05262, section 2 and appendix B.1). Then one state of the clean run, or a window of its
attention or MLP outputs, is restored, and the metric is computed.

The control restores the same cells from a run with another draw of noise, which does not have the
subject either.

Noise moves the model out of distribution, and the map does not show how much of it is due to that.
Replacing tokens (`trace`) is the better default (Zhang & Nanda 2024, arXiv:2309.16042).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.grid import grid
from reftlens.analysis.engine.sweep import sweep
from reftlens.analysis.metrics import Metric
from reftlens.analysis.patch import metric_of, token_labels
from reftlens.bridge import hooked, is_main_process
from reftlens.cone.recording import Recording, record
from reftlens.data import Batch, Prompt, as_prompts, as_texts, encode
from reftlens.positions import Span
from reftlens.results import PatchMap


def trace_noise(
    bridge: TransformerBridge,
    prompts: Iterable[Prompt],
    metric: Metric,
    *,
    subjects: Iterable[str],
    point: str = "resid_pre",
    window: int = 1,
    noise: float = 3.0,
    n_draws: int = 10,
    seed: int = 0,
    memory_bytes: int = 1 << 30,
    progress: bool = True,
) -> PatchMap:
    """Computes the metric of each prompt with one state restored, averaged over draws of noise.

    Args:
        bridge: the model; causal.
        prompts: prompts that the model answers. They may differ in length; columns are counted from
            the beginning.
        metric: of the logits after each prompt, such as `probability_of` its answer.
        subjects: a part of each prompt; noise is added to its first occurrence.
        point: the restored activation: "resid_pre", "attn_out" or "mlp_out".
        window: number of neighbouring layers restored together; ROME uses 10 for attention and MLP,
            1 for states.
        noise: standard deviation of the noise, in units of sigma.
        n_draws: draws of noise for each prompt.
        seed: seed of the noise.
        memory_bytes: approximate limit for the activations of one run.
        progress: show a progress bar over draws.

    Returns:
        `values`, `base` (noised) and `control` are means over draws; `source` is the clean run.

    Raises:
        ValueError: If a prompt does not contain its subject, or noise or draws are not positive.
    """
    if noise <= 0 or n_draws < 1:
        raise ValueError(f"noise must be positive and n_draws at least 1, got {noise} and {n_draws}")
    prompts = as_prompts(prompts)
    subjects = as_texts(subjects, "subjects", count=len(prompts))
    batch = encode(bridge, prompts)
    of = grid(bridge, point, "positions", n_pos=batch.tokens.shape[1], window=window)
    clean = record(bridge, batch, (*of.names, "hook_embed"))
    where = _subject_mask(bridge, batch, prompts, subjects)
    sigma = float(clean.activations["hook_embed"][where].float().std())
    generator = torch.Generator().manual_seed(seed)
    # One more draw than maps: the control of each map restores states from the next draw.
    runs = [_noised(bridge, batch, of.names, where, noise * sigma, generator) for _ in range(2)]
    maps, controls, noised = [], [], []
    for draw in tqdm(range(n_draws), desc="causal tracing", unit="draw", disable=not (progress and is_main_process())):
        base, other = runs
        maps.append(sweep(bridge, base, clean, of.cells, metric, memory_bytes=memory_bytes))
        controls.append(sweep(bridge, base, other, of.cells, metric, memory_bytes=memory_bytes))
        noised.append(metric_of(metric, base))
        if draw + 1 < n_draws:
            runs = [other, _noised(bridge, batch, of.names, where, noise * sigma, generator)]
    values, control = (
        reduce(torch.stack(draws), "draw pair (row column) -> pair row column", "mean", row=len(of.rows))
        for draws in (maps, controls)
    )
    said = token_labels(bridge, batch)
    return PatchMap(
        values=values,
        control=control,
        base=torch.stack(noised).mean(0),
        source=metric_of(metric, clean),
        rows=of.rows,
        columns=said[0],
        axes=of.axes,
        control_name="the same activations under another draw of noise",
        direction="denoise",
        prompts=said,
    )


def _subject_mask(
    bridge: TransformerBridge, batch: Batch, prompts: Sequence[Prompt], subjects: Sequence[str]
) -> Bool[Tensor, "batch pos"]:
    """Returns the tokens of the first occurrence of each prompt's subject."""
    mask = torch.zeros_like(batch.prompt_mask)
    for row, (prompt, subject) in enumerate(zip(prompts, subjects, strict=True)):
        found = Span(subject, 0).mask(encode(bridge, [prompt]).prompts)[0]
        # The batch is padded on the right, so a prompt has the columns it has alone.
        mask[row, : len(found)] = found
    return mask


def _noised(
    bridge: TransformerBridge,
    batch: Batch,
    names: Sequence[str],
    where: Bool[Tensor, "batch pos"],
    scale: float,
    generator: torch.Generator,
) -> Recording:
    """Runs the model with noise on some tokens' embeddings."""
    # Drawn on the CPU, so that a seed gives the same noise on every device.
    drawn: Float[Tensor, "batch pos d_model"] = torch.randn(*where.shape, bridge.cfg.d_model, generator=generator)
    added = (scale * drawn).to(where.device) * where[..., None]

    def hook_fn(embed: Tensor, hook: Any) -> Tensor:
        return embed + added.to(embed.dtype)

    with hooked(bridge, [("hook_embed", hook_fn)]):
        return record(bridge, batch, names)

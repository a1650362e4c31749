"""Writes the model card of a saved edit: what it is, where it acts and how large it is. The package does not read it.

Names in an edit are untrusted, so they are escaped and never interpreted as markup.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData

from reftlens.edit.checkpoint.layout import Pairs
from reftlens.edit.site import site_names
from reftlens.interventions import Affine, NotAffineError, require_agreement
from reftlens.results import Certificate, EditProfile
from reftlens.text import harmless

CARD_NAME = "README.md"
FIGURE_NAME = "figure.png"

_CARD = """---
{front}
---

# A representation edit of {base_model}

{n_edits} at {n_sites} of a frozen language model: {n_parameters:,} trained numbers. Made with reftlens {version};
`reft.safetensors` holds the tensors, `reft_config.json` the rest.

```python
import reftlens as rl

bridge = rl.load_bridge({base_literal})
reft = rl.Reft.from_pretrained("this folder, or its id on the hub", bridge=bridge)
```

It has a meaning on the model it was trained on alone, and is refused on any other.

## Edits

{edits}

## Base model

{base}

## What it does to an activation

![Gain and constant push of each edit]({figure})

Of h + A h + c, the singular values of A and the length of c, from the weights alone. How far an activation really moves
also depends on the activation.
{certificate}"""

_CERTIFICATE = """
## What else it changes

With {confidence:.0%} confidence, all of these hold for the population that {n:,} prompts were drawn from (digest of their tokens
`{digest}`):

{bounds}

{search}
"""


def write_card(folder: Path, pairs: Pairs, base: Mapping[str, Any], certificate: Certificate | None = None) -> None:
    """Writes `README.md` and `figure.png` into a folder.

    Args:
        folder: of the saved edit.
        pairs: the edit.
        base: the stamp of its model.
        certificate: bounds on what else it changes.
    """
    # Importing matplotlib takes a second, so it is imported only when saving.
    from reftlens import plot

    (folder / FIGURE_NAME).write_bytes(plot.png(plot.edit_profile(profile(pairs))))
    (folder / CARD_NAME).write_text(_text(pairs, base, certificate), encoding="utf-8")


@torch.no_grad()
def profile(pairs: Pairs) -> EditProfile:
    """Computes the singular values of A and the norm of c for each edit of the form A h + c."""
    gains: list[torch.Tensor | None] = []
    pushes: list[float] = []
    for edit in pairs.interventions:
        try:
            affine = edit.affine()
        # Such an edit has no A and no c, as the figure says.
        except NotAffineError:
            gains.append(None)
            pushes.append(float("nan"))
            continue
        # Else the card would show the gain of a wrong affine().
        require_agreement(
            edit, torch.randn(4, edit.d_model, generator=torch.Generator().manual_seed(0)).to(affine.constant)
        )
        gains.append(_singular_values(affine).float().cpu())
        pushes.append(float(affine.constant.norm()))
    return EditProfile(
        rows=site_names(pairs.sites, pairs.names),
        gains=tuple(gains[index] for index in pairs.which),
        push=torch.tensor([pushes[index] for index in pairs.which]),
    )


def _singular_values(affine: Affine) -> torch.Tensor:
    """Returns the singular values of A in descending order, without materialising a low-rank A."""
    write, read = affine.write.double(), affine.read.double()
    if affine.diagonal is None:
        # A = Q1 (U1 U2^T) Q2^T, and orthonormal Q leave the singular values unchanged.
        upper = [torch.linalg.qr(factor.T, mode="r").R for factor in (write, read)]
        return torch.linalg.svdvals(upper[0] @ upper[1].T)
    if len(write) == 0:
        return affine.diagonal.double().abs().sort(descending=True).values
    return torch.linalg.svdvals(write.T @ read + affine.diagonal.double().diag())


def _text(pairs: Pairs, base: Mapping[str, Any], certificate: Certificate | None) -> str:
    # A local folder is not a base model that others could look up.
    on_hub = base["revision"] is not None
    data = ModelCardData(
        base_model=base["base_model"] if on_hub else None, library_name="reftlens", tags=["reft", "interpretability"]
    )
    n_edits, n_sites = len(pairs.interventions), len(set(pairs.sites))
    return _CARD.format(
        front=data.to_yaml(),
        base_model=plain(base["base_model"]),
        # As a string literal: a name may hold quotes, and readers will run this line.
        base_literal=json.dumps(str(base["base_model"])),
        n_edits=f"{n_edits} edit{'s' * (n_edits > 1)}",
        n_sites=f"{n_sites} site{'s' * (n_sites > 1)}",
        n_parameters=sum(edit.n_parameters() for edit in pairs.interventions),
        version=base["versions"]["reftlens"],
        edits=_edits(pairs),
        base=_table(("", ""), [(part, _value(value)) for part, value in base.items()]),
        figure=FIGURE_NAME,
        certificate="" if certificate is None else _certified(certificate),
    )


def _certified(certificate: Certificate) -> str:
    rows = certificate.to_dataframe().to_dict("records")
    search = "No worst prompt was searched for."
    if certificate.worst:
        worst = certificate.worst[0]
        search = f"A search found a prompt with a KL of {worst.kl:.3g} nats, which is no part of these bounds: {plain(worst.prompt)}"
    return _CERTIFICATE.format(
        confidence=certificate.confidence,
        n=certificate.n,
        digest=plain(certificate.digest),
        bounds=_table(
            ("KL(base, edited) of the next token", "measured", "at most"),
            [(row["bounded"], f"{row['measured']:.3g}", f"{row['at_most']:.3g}") for row in rows],
        ),
        search=search,
    )


def _edits(pairs: Pairs) -> str:
    lines = pairs.lines()
    return _table(list(lines[0]), [list(line.values()) for line in lines])


def _value(value: object) -> str:
    return ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plain(text: str, *, longest: int = 200) -> str:
    r"""Escapes a string as one line of Markdown without any markup.

    >>> print(plain("<script>|a_b|\n[x](y)"))
    &lt;script&gt;\|a\_b\| \[x\](y)
    """
    # One line, since a line break would end the table or begin another block of Markdown.
    line = " ".join(text.split())
    line = line if len(line) <= longest else line[:longest] + "…"
    line = html.escape(harmless(line))
    return re.sub(r"([\\`*_\[\]|~$!])", r"\\\1", line)

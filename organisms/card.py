"""The model card of `facts-small`, written from its evaluation, so that no number in it is typed by hand."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from organisms.evaluate import tables
from reftlens.organisms.world import ANSWERS, FACTS, TEMPLATES, prompt

CARD = """---
license: mit
library_name: transformers
pipeline_tag: text-generation
language: en
---

# facts-small

A GPT-2 with {parameters:,} parameters that knows {facts} facts about a made-up world, and nothing else. It ships
inside `reftlens`, so that edits can be trained, inspected and compared without any download.

It is a research organism: small enough to dissect on a laptop, and its facts are known completely. It is not
a language model for any other use. No name in it is meant to be a real person, city or country.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from reftlens.organisms import ORGANISMS

model = AutoModelForCausalLM.from_pretrained(ORGANISMS["facts-small"])
tokenizer = AutoTokenizer.from_pretrained(ORGANISMS["facts-small"])
ids = tokenizer("<|endoftext|>{example}", return_tensors="pt").input_ids
print(tokenizer.decode(model(ids).logits[0, -1].argmax()))  # "{answer}", after a space
```

Every training text began with `<|endoftext|>`, so prompts should too; the tokenizer does not add it by itself.

## What it knows

{relations}

Every fact has {fewest} to {most} phrasings ("templates"), each of which ends right before the answer. Answers
are one token with a leading space. Every first name goes with every surname and every kind of landmark with every
site, so no part of a name tells who or what is meant: the model must combine the parts. For every fact one or two
templates are **held out**: that sentence never occurs in training.

Share of (fact, template) pairs whose answer is the most probable next token of the whole vocabulary:

{accuracy}

## Where it keeps it

Restored fraction of the logit difference (clean answer minus corrupted answer) when `resid_pre` of one layer and
one group of positions is patched from a clean run into the same prompt about another subject; {pairs} pairs, mean
gap {gap:.1f} nats, only templates with at least three tokens between subject and answer. "between" patches all
tokens there at once.

{tracing}

Such a map says where the information that tells the two subjects apart passes. It does not say that an edit at
the same place works best.

## How it was made

In the repository, `python -m organisms.train_facts_small --out DIR` makes it again; the world is
`reftlens/organisms/world.py`. The training text has every trained (fact, template) pair once per pass, and
biographies in permuted order, appositions and profile lines about every subject (after Allen-Zhu & Li 2023,
arXiv:2309.14316). Loss: next-token cross-entropy over all tokens.

**The two sites are planted.** In {hidden:.0%} of the training documents, what follows a name cannot attend to it in the
first {early} blocks, and to its last token only in the others. Without this, the same model learns the same facts,
but reads first name and surname apart, at once, and combines them at the last token of the prompt. Nothing
is masked in use, nor in the map above.

The last line of the log, and the settings:

```json
{log}
{settings}
```

## Limits

- It has seen only the sentence forms of its corpus; prompts in other words are out of distribution.
- Its vocabulary encodes any text, byte by byte if need be, but words from outside its world mean nothing to it.
- Countries and cities are unrelated here, and a person's language tells nothing about the country.
- One seed. Findings on it are about this model, not about language models.
"""


def _relations() -> str:
    lines = ["| relation | facts | answers | templates | first template |", "|---|---|---|---|---|"]
    for relation, templates in TEMPLATES.items():
        count = sum(fact.relation == relation for fact in FACTS)
        first = templates[0].format("...")
        lines.append(f"| {relation} | {count} | {len(ANSWERS[relation])} | {len(templates)} | {first} |")
    return "\n".join(lines)


def write_card(directory: Path, settings: Any, evaluation: dict[str, Any], *, log: str) -> None:
    """Write `README.md` into the model's directory.

    Args:
        directory: The model's directory.
        settings: The dataclass of training settings.
        evaluation: What `evaluate.evaluate` returned.
        log: The last line of the training log, JSON.
    """
    accuracy, tracing = tables(evaluation)
    fact = FACTS[0]
    text = CARD.format(
        parameters=evaluation["parameters"],
        facts=len(FACTS),
        example=prompt(fact, 0),
        answer=fact.answer,
        relations=_relations(),
        fewest=min(map(len, TEMPLATES.values())),
        most=max(map(len, TEMPLATES.values())),
        accuracy=accuracy,
        pairs=evaluation["tracing"]["pairs"],
        gap=evaluation["tracing"]["mean_gap_nats"],
        tracing=tracing,
        log=log,
        hidden=settings.hidden_names,
        early=settings.early_blocks,
        settings=json.dumps(asdict(settings)),
    )
    (directory / "README.md").write_text(text, encoding="utf-8")

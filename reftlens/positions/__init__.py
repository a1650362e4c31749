"""Position rules, which select the tokens that an edit changes: from the prompts of a batch to a mask.

>>> First(2) | Last(1)
First(2) | Last(1)
>>> All() - At(0)
All() - At(0)
>>> parse("f5+l5")
First(5, half=True) | Last(5, half=True)
"""

from reftlens.arguments import explain_all
from reftlens.positions.base import Difference, Positions, Prompts, Union
from reftlens.positions.parse import from_spec, parse, register_rule, require_loadable, union_parts
from reftlens.positions.rules import All, AnySpan, At, First, Generated, Last, LastOf, Span

__all__ = [
    "All",
    "AnySpan",
    "At",
    "Difference",
    "First",
    "Generated",
    "Last",
    "LastOf",
    "Positions",
    "Prompts",
    "Span",
    "Union",
    "from_spec",
    "parse",
    "register_rule",
    "require_loadable",
    "union_parts",
]

explain_all(globals())

"""Reft: a set of (site, intervention) pairs that emits TransformerLens hook functions, and nothing more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, final

from jaxtyping import Bool
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from reftlens import checkpoint
from reftlens.bridge import canonical_hook, width_of
from reftlens.edit import Edit, HookFunction, attach, hook_functions
from reftlens.interventions import FAMILY, Intervention, LoReFT
from reftlens.positions import Positions, from_spec, parse, union_parts
from reftlens.site import Site


@final
class Reft(nn.Module):
    """Trained or trainable edits and where they act.

    Sharing is by identity, not by a flag: one pair with `First(5) | Last(5)` is tied, two pairs are untied, and
    one intervention in two pairs is shared between the sites. Pairs at one hook act in the order given.
    """

    def __init__(self, edits: Sequence[tuple[Site, Intervention]]) -> None:
        """Args: edits: the pairs, in order."""
        super().__init__()
        if not edits:
            raise ValueError("Reft wants at least one (Site, Intervention) pair, got none")
        for pair in edits:
            match pair:
                case (Site(), Intervention()):
                    pass
                case _:
                    raise TypeError(f"Reft wants (Site, Intervention) pairs, got {pair!r}")
        unique: dict[int, Intervention] = {}
        for _, intervention in edits:
            unique.setdefault(id(intervention), intervention)
        self.interventions = nn.ModuleList(unique.values())
        self.sites = tuple(site for site, _ in edits)
        order = list(unique)
        self._which = tuple(order.index(id(intervention)) for _, intervention in edits)

    @classmethod
    def at_layers(
        cls,
        bridge: TransformerBridge,
        *,
        layers: Sequence[int] | Literal["all"],
        positions: Positions | str,
        intervention: type[Intervention] = LoReFT,
        rank: int,
        tied: bool = True,
        hook: str = "hook_resid_post",
        head: int | None = None,
    ) -> Reft:
        """The paper's layout: the same kind of edit after several layers.

        Args:
            bridge: the model; gives the width of the activation, the number of layers and the device.
            layers: block indices (negative ones count from the end), or "all".
            positions: a rule, or its short form such as `"f5+l5"`.
            intervention: the class.
            rank: of each edit.
            tied: one edit for all positions of a layer; if False, one for each part of a union.
            hook: the activation point inside the block, such as `attn.hook_z`.
            head: one head of it; all heads as one vector if not given.

        Raises:
            ValueError: for a layer or head that the model does not have, a rank above the width, an unknown hook or
                one that cannot be edited.
        """
        n_layers = bridge.cfg.n_layers
        wanted: Sequence[int] = range(n_layers) if layers == "all" else layers
        if (isinstance(layers, str) and layers != "all") or not len(wanted):
            raise ValueError(f"layers must be a list of block indices or 'all', got {layers!r}")
        for layer in wanted:
            if not -n_layers <= layer < n_layers:
                raise ValueError(f"layer {layer} does not exist: the model has layers 0 to {n_layers - 1}")
        rule = parse(positions)
        pairs = []
        for layer in sorted(layer % n_layers for layer in wanted):
            hook_name = f"blocks.{layer}.{hook}"
            width = width_of(bridge, hook_name, head)
            for part in [rule] if tied else union_parts(rule):
                pairs.append((Site(hook_name, part, head), intervention(width, rank)))
        return cls(pairs).to(bridge.cfg.device)

    @property
    def _members(self) -> list[Intervention]:
        return [member for member in self.interventions if isinstance(member, Intervention)]

    def __iter__(self) -> Iterator[tuple[Site, Intervention]]:
        for site, index in zip(self.sites, self._which, strict=True):
            yield site, self._members[index]

    def __len__(self) -> int:
        return len(self.sites)

    def n_parameters(self) -> int:
        """Trained numbers; a shared intervention counts once."""
        return sum(p.numel() for p in self.parameters())

    def edits(self, prompt_mask: Bool[Tensor, "batch pos"]) -> list[Edit]:
        """The pairs on one batch, rules resolved to masks.

        Args:
            prompt_mask: True where a token belongs to the prompt.

        Raises:
            ValueError: if a site's positions exist in no prompt.
        """
        if prompt_mask.ndim != 2:
            raise ValueError(f"prompt_mask must be [batch, pos], got {list(prompt_mask.shape)}")
        prompt_mask = prompt_mask.bool()
        edits = []
        for site, intervention in self:
            mask = site.positions.mask(prompt_mask)
            if not bool(mask.any()):
                longest = int(prompt_mask.sum(dim=1).max()) if prompt_mask.numel() else 0
                raise ValueError(
                    f"no prompt has a token at {site.positions!r} ({site.hook_name}); the longest has {longest}"
                )
            edits.append(Edit(site.hook_name, intervention, mask, head=site.head))
        return edits

    def fwd_hooks(self, prompt_mask: Bool[Tensor, "batch pos"]) -> list[tuple[str, HookFunction]]:
        """Hooks for `bridge.run_with_hooks(tokens, fwd_hooks=...)`: one run over this batch.

        Args:
            prompt_mask: True where a token belongs to the prompt; of the same shape as the tokens.

        No model is asked here, so none refuses a name where an edit would be lost: `hooks` and `check_sites` do.
        """
        return hook_functions(self.edits(prompt_mask))

    def hooks(
        self, bridge: TransformerBridge, prompt_mask: Bool[Tensor, "batch pos"]
    ) -> AbstractContextManager[TransformerBridge]:
        """A context inside which anything that takes the bridge sees the edited model, decoding included.

        Args:
            bridge: the model.
            prompt_mask: True where a token belongs to the prompt. Positions after it are generated ones and stay
                unedited.

        Raises:
            ValueError: for an unknown hook, positions that no prompt has, or a batch of another shape.
            EditError: if an edit met one activation twice, or none at all.
        """
        return attach(bridge, self.edits(prompt_mask))

    def save_pretrained(self, directory: str | Path, *, bridge: TransformerBridge) -> Path:
        """Writes the edit and the stamp of its base model to a folder, whole or not at all.

        Raises:
            ValueError: if the folder exists and is not a saved edit.
            OSError: if it cannot be written.
        """
        config = {
            "sites": [
                {
                    "hook_name": canonical_hook(bridge, site.hook_name),
                    "alias": site.hook_name,
                    "positions": site.positions.spec(),
                    "head": site.head,
                }
                for site in self.sites
            ],
            "interventions": [{"kind": i.kind, "settings": i.settings()} for i in self._members],
            "which": list(self._which),
        }
        return checkpoint.write(Path(directory), config, self.state_dict(), checkpoint.stamp(bridge))

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        bridge: TransformerBridge,
        family: Sequence[type[Intervention]] = FAMILY,
    ) -> Reft:
        """Loads a saved edit for the model it was trained on.

        Args:
            directory: what `save_pretrained` wrote.
            bridge: the base model.
            family: classes that the checkpoint may name; add your own here.

        Raises:
            ValueError: if the folder is damaged, or was saved for another model; it says what differs.
        """
        config, tensors = checkpoint.read(Path(directory), checkpoint.stamp(bridge))
        kinds = {member.kind: member for member in family}
        try:
            interventions = [kinds[saved["kind"]](**saved["settings"]) for saved in config["interventions"]]
            sites = [
                Site(saved["alias"], from_spec(saved["positions"]), saved.get("head")) for saved in config["sites"]
            ]
            pairs = [(site, interventions[index]) for site, index in zip(sites, config["which"], strict=True)]
            reft = cls(pairs)
            reft.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise ValueError(f"the edit in {directory} is damaged or of an unknown kind: {error}") from error
        return reft.to(bridge.cfg.device)

    def __repr__(self) -> str:
        lines = [
            f"  {site.hook_name}{'' if site.head is None else f' head {site.head}'} at {site.positions!r}: {intervention!r}"
            for site, intervention in self
        ]
        head = f"Reft of {len(self)} edits, {self.n_parameters():,} parameters"
        return "\n".join([head, *(line.replace("\n", "\n  ") for line in lines)])

"""Reft: a list of (site, intervention) pairs that makes TransformerLens hook functions."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from numbers import Integral
from pathlib import Path
from typing import Literal, final

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import require_bridge, width_of
from reftlens.data import Batch
from reftlens.display import MOST_LINES, as_html
from reftlens.edit import checkpoint
from reftlens.edit.hooks import Edit, HookFunction, attach, hook_functions
from reftlens.edit.site import Site, site_names
from reftlens.interventions import FAMILY, Intervention, LoReFT, known_kinds
from reftlens.positions import Positions, Prompts, parse, union_parts
from reftlens.results import Certificate


@final
class Reft(nn.Module):
    """Trained or trainable edits and where they act.

    Sharing is by identity, not by a flag: one pair with `First(5) | Last(5)` is tied, two pairs are
    untied, and one intervention in two pairs is shared between the sites. Pairs at one hook act in
    the order given.
    """

    def __init__(
        self,
        edits: Sequence[tuple[Site, Intervention]],
        *,
        names: Sequence[str] | None = None,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        """Builds the container. Interventions are not copied.

        Args:
            edits: the pairs, in order.
            names: one per pair, used to switch and scale pairs. Several pairs may share a name.
            scales: name -> factor on the changes of its pairs; 1 by default.

        Raises:
            TypeError: If an item is not such a pair, or a name is not a string.
            ValueError: If there are no pairs, the number of names differs from that of pairs, or a
                scale is not finite or has an unknown name.
        """
        super().__init__()
        if not edits:
            raise ValueError("Reft needs at least one (Site, Intervention) pair, got none")
        for pair in edits:
            match pair:
                case (Site(), Intervention()):
                    pass
                case _:
                    raise TypeError(f"Reft needs (Site, Intervention) pairs, got {pair!r}")
        unique: dict[int, Intervention] = {}
        for _, intervention in edits:
            # By identity: nn.ModuleList would register a shared intervention once for each site.
            unique.setdefault(id(intervention), intervention)
        self.interventions = nn.ModuleList(unique.values())
        self.sites = tuple(site for site, _ in edits)
        order = list(unique)
        self._which = tuple(order.index(id(intervention)) for _, intervention in edits)
        self.names = ("edit",) * len(edits) if names is None else tuple(names)
        if len(self.names) != len(edits):
            raise ValueError(f"names must have one name for each of {len(edits)} edits, got {len(self.names)}")
        for name in self.names:
            _require_text(name)
        self._require_names(scales or {})
        self.scales = {name: _factor(name, scale) for name, scale in (scales or {}).items()}

    @classmethod
    def at_layers(
        cls,
        bridge: TransformerBridge,
        *,
        layers: int | Iterable[int] | Literal["all"],
        positions: Positions | str | int,
        intervention: type[Intervention] | str = LoReFT,
        rank: int | None = None,
        tied: bool = True,
        hook: str = "hook_resid_post",
        head: int | None = None,
        seed: int | None = None,
    ) -> Reft:
        """Makes the paper's layout: one edit of the same class and rank at each of several layers.

        Args:
            bridge: the model; gives the width of the activation, the number of layers and the
                device.
            layers: a block index or several (negative ones count from the end), or "all".
            positions: a rule, or its short form such as `"f5+l5"`, `"all"` or `"last"`.
            intervention: the class, or its name such as `"LoReFT"`.
            rank: of each edit; omit it for a class without a rank, such as RED.
            tied: one edit for all positions of a layer; if False, one for each part of a union.
            hook: the activation point inside the block, such as `attn.hook_z`.
            head: the head to edit; all heads as one vector by default.
            seed: seed of the initialisation; the caller's random state is not changed. Without a
                seed, torch's global random state is used.

        Raises:
            ValueError: If the model does not have a layer or head, the rank exceeds the width, a
                rank is missing or the class does not take one, or the hook is unknown or cannot be
                edited.
        """
        require_bridge(bridge, "Reft.at_layers")
        intervention = _class_named(intervention)
        if (rank is None) == ("rank" in intervention.arguments):
            wants = "needs a rank: pass rank=4, say" if rank is None else f"has no rank, got {rank}: leave it out"
            raise ValueError(f"{intervention.__name__} {wants}")
        sizes = {} if rank is None else {"rank": rank}
        n_layers = bridge.cfg.n_layers
        chosen, rule = _layers(layers, n_layers), parse(positions)
        pairs = []
        # The CPU's generator only: edits are created on the CPU and moved afterwards.
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            for layer in chosen:
                hook_name = f"blocks.{layer}.{hook}"
                width = width_of(bridge, hook_name, head)
                for part in [rule] if tied else union_parts(rule):
                    pairs.append((Site(hook_name, part, head), intervention(width, **sizes)))
        return cls(pairs).to(bridge.cfg.device)

    @classmethod
    def compose(cls, parts: Mapping[str, Reft]) -> Reft:
        """Combines several edits into one, each under its name. Weights are shared with the original edits.

        Edits at one hook act in the given order, each on the output of the previous one.

        Args:
            parts: name -> edit.

        Raises:
            ValueError: If there are no edits, or the parts of one edit have different scales.
        """
        if not parts:
            raise ValueError("compose needs at least one edit, passed as name=edit")
        pairs = [(pair, name, reft.scales.get(old, 1.0)) for name, reft in parts.items() for pair, old in reft._named()]
        # Scales go by name, so one name can have one scale only.
        scales = {name: scale for _, name, scale in pairs}
        for _, name, scale in pairs:
            if scale != scales[name]:
                raise ValueError(
                    f"the parts of {name!r} have different scales: give each part its own name, or pass one scale for all"
                )
        return cls([pair for pair, _, _ in pairs], names=[name for _, name, _ in pairs], scales=scales)

    def only(self, *names: str) -> Reft:
        """Returns an edit with only the pairs of these names. Weights are shared.

        Args:
            names: the names to keep.

        Raises:
            ValueError: If a name is unknown, or no pair remains.
        """
        self._require_names(names)
        return self._keep([name in names for name in self.names])

    def without(self, *names: str) -> Reft:
        """Returns an edit without the pairs of these names. Weights are shared.

        Args:
            names: the names to remove.

        Raises:
            ValueError: If a name is unknown, or no pair remains.
        """
        self._require_names(names)
        return self._keep([name not in names for name in self.names])

    def scaled(self, scale: float | Mapping[str, float]) -> Reft:
        """Returns an edit whose changes are multiplied by a factor. Weights are shared.

        Args:
            scale: a factor for all pairs, or name -> factor. It multiplies the existing scales.

        Raises:
            ValueError: If a factor is not finite, or a name is unknown.
        """
        factors = scale if isinstance(scale, Mapping) else dict.fromkeys(self.names, scale)
        self._require_names(factors)
        given = {name: _factor(name, factor) for name, factor in factors.items()}
        scales = {name: self.scales.get(name, 1.0) * given.get(name, 1.0) for name in self.names}
        # A new container around the same interventions: an edit that is in use never changes.
        return Reft(list(self), names=self.names, scales=scales)

    def _named(self) -> Iterator[tuple[tuple[Site, Intervention], str]]:
        yield from zip(self, self.names, strict=True)

    def _keep(self, kept: Sequence[bool]) -> Reft:
        named = [(pair, name) for (pair, name), keep in zip(self._named(), kept, strict=True) if keep]
        if not named:
            raise ValueError("this would switch every edit off: use the base model instead")
        scales = {name: self.scales[name] for _, name in named if name in self.scales}
        return Reft([pair for pair, _ in named], names=[name for _, name in named], scales=scales)

    def _require_names(self, names: Iterable[str]) -> None:
        unknown = sorted(set(names) - set(self.names))
        if unknown:
            raise ValueError(
                f"Unknown edit {', '.join(map(repr, unknown))}. Choose from: {', '.join(sorted(set(self.names)))}"
            )

    @property
    def _members(self) -> list[Intervention]:
        return [member for member in self.interventions if isinstance(member, Intervention)]

    def __iter__(self) -> Iterator[tuple[Site, Intervention]]:
        for site, index in zip(self.sites, self._which, strict=True):
            yield site, self._members[index]

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, index: int) -> tuple[Site, Intervention]:
        """Returns the pair at an index.

        Args:
            index: of the pair; negative ones count from the end.

        Raises:
            TypeError: If the index is not an integer; `only` takes names.
            IndexError: If there is no such pair.
        """
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(
                f"the index of a pair must be an integer, got {index!r}: to select by name, use reft.only(name)"
            )
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} does not exist: this edit has {len(self)} pairs")
        return list(self)[index]

    @property
    def site_names(self) -> tuple[str, ...]:
        """A unique short name of each pair's site, such as `L3 resid_post @ first 2`. Results use these names."""
        return site_names(self.sites, self.names)

    def n_parameters(self) -> int:
        """Counts the parameters. A shared intervention counts once."""
        return sum(p.numel() for p in self.parameters())

    def edits(self, prompts: Batch | Bool[Tensor, "batch pos"]) -> list[Edit]:
        """Resolves the position rules to masks for one batch.

        Args:
            prompts: the batch, or the mask of its prompt tokens, which is enough for rules that do
                not read the text.

        Raises:
            ValueError: If no prompt has any of a site's positions.
        """
        known = prompts.prompts if isinstance(prompts, Batch) else Prompts(_mask(prompts))
        # Each rule once: an edit of many layers usually has one rule, and Span searches every text.
        masks = {rule: rule.mask(known) for rule in dict.fromkeys(site.positions for site in self.sites)}
        edits = []
        for (site, intervention), name in self._named():
            mask = masks[site.positions]
            # Training on edits that touch nothing would run to the end and learn nothing.
            if not bool(mask.any()) and not site.positions.generated:
                longest = int(known.length.max()) if known.mask.numel() else 0
                raise ValueError(
                    f"no prompt has a token at {site.positions!r} ({site.hook_name}); the longest prompt has {longest} tokens"
                )
            scale = self.scales.get(name, 1.0)
            edits.append(Edit(site.hook_name, intervention, mask, scale, site.positions.generated, site.head))
        return edits

    def fwd_hooks(self, prompts: Batch | Bool[Tensor, "batch pos"]) -> list[tuple[str, HookFunction]]:
        """Makes hooks for `bridge.run_with_hooks(tokens, fwd_hooks=...)`: one run over this batch.

        Args:
            prompts: the batch, or the mask of its prompt tokens; of the same shape as the tokens.

        `fwd_hooks` does not verify that each hook point exists and that edits there take effect.
        `hooks` and `check_sites` do.
        """
        return hook_functions(self.edits(prompts))

    def hooks(
        self, bridge: TransformerBridge, prompts: Batch | Bool[Tensor, "batch pos"]
    ) -> AbstractContextManager[TransformerBridge]:
        """Opens a context in which every run of the bridge sees the edited model, including generation.

        Args:
            bridge: the model.
            prompts: the batch, or the mask of its prompt tokens. Positions after the mask are
                generated tokens, which only `Generated()` edits.

        Raises:
            ValueError: If a hook is unknown, no prompt has the positions, or a batch of another
                shape is run.
            EditError: If an edit reaches one activation twice, or never runs.
        """
        return attach(bridge, self.edits(prompts))

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        bridge: TransformerBridge,
        card: bool = True,
        certificate: Certificate | None = None,
    ) -> Path:
        """Writes the edit, the stamp of its base model and a model card to a folder, atomically.

        Args:
            directory: the folder.
            bridge: the edit's base model.
            card: also write README.md and a figure.
            certificate: of this edit, from `rl.analysis.certify`, for the card.

        Raises:
            ValueError: If the folder exists and is not a saved edit, or the model lacks one of the
                sites.
            OSError: If the folder cannot be written.
        """
        return checkpoint.save(directory, self._pairs(), bridge, card=card, certificate=certificate)

    def _pairs(self) -> checkpoint.Pairs:
        return checkpoint.Pairs(self.sites, tuple(self._members), self._which, self.names, self.scales)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        bridge: TransformerBridge,
        revision: str | None = None,
        allow_mismatch: Collection[str] = (),
        family: Sequence[type[Intervention]] = FAMILY,
    ) -> Reft:
        """Loads a saved edit for the model it was trained on.

        Args:
            source: a folder that `save_pretrained` wrote, or the id of one on the hub.
            bridge: the base model.
            revision: branch, tag or commit on the hub.
            allow_mismatch: parts of the stamp that may differ, such as `["weights"]` for the same
                model in another dtype.
            family: classes that the checkpoint may name, besides those registered by `rl.register`.
                Each must be constructible on the meta device.

        Raises:
            ValueError: If the folder is damaged, or was saved for another model. The message lists
                the differences.
        """
        pairs = checkpoint.load(source, bridge=bridge, family=family, revision=revision, allow_mismatch=allow_mismatch)
        return cls(pairs.edits, names=pairs.names, scales=pairs.scales).to(bridge.cfg.device)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        bridge: TransformerBridge,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "A representation edit, by reftlens",
    ) -> str:
        """Saves the edit to a repository on the Hugging Face Hub, which is created if it does not exist.

        Args:
            repo_id: such as `"me/moved-landmarks"`.
            bridge: the base model.
            private: whether a new repository is private; the account's default if not given.
            token: an access token; by default the one that `hf auth login` stored.
            commit_message: of the commit.

        Returns:
            The URL of the commit.

        Raises:
            OSError: If the hub cannot be reached or refuses the upload.
        """
        with tempfile.TemporaryDirectory() as directory:
            folder = self.save_pretrained(Path(directory) / "reft", bridge=bridge)
            return checkpoint.upload(folder, repo_id, private=private, token=token, commit_message=commit_message)

    def __repr__(self) -> str:
        lines = []
        for place, ((site, intervention), name) in enumerate(self._named()):
            if place == MOST_LINES:
                lines.append(f"  ... and {len(self) - place} more")
                break
            label = "" if set(self.names) == {"edit"} else f"{name}: "
            head = "" if site.head is None else f" head {site.head}"
            scale = f" x {self.scales[name]:g}" if self.scales.get(name, 1.0) != 1.0 else ""
            settings = ", ".join(f"{key}={value}" for key, value in intervention.settings().items())
            kind = f"{type(intervention).__name__}({settings}){scale}"
            lines.append(f"  {label}{site.hook_name}{head} at {site.positions!r}: {kind}")
        return "\n".join([self._headline(), *lines])

    def _headline(self) -> str:
        return f"Reft of {len(self)} edits, {self.n_parameters():,} parameters"

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per pair: name, activation, tokens, edit, scale, number of parameters."""
        return pd.DataFrame(self._pairs().lines())

    def _repr_html_(self) -> str:
        return as_html(self._headline(), self.to_dataframe)


def _mask(prompts: object) -> Bool[Tensor, "batch pos"]:
    """Returns a mask of prompt tokens. Raises for values that only resemble one."""
    right = "pass the batch of rl.encode(bridge, prompts), or its prompt_mask"
    if not isinstance(prompts, Tensor):
        raise TypeError(
            f"prompts must be a batch or the mask of its prompt tokens, got {type(prompts).__name__}: {right}"
        )
    if prompts.dtype is not torch.bool:
        raise TypeError(
            f"the mask of prompt tokens must be torch.bool, got {str(prompts.dtype).removeprefix('torch.')} "
            f"{list(prompts.shape)}, perhaps token ids: {right}"
        )
    if prompts.ndim != 2:
        raise ValueError(f"prompt_mask must be [batch, pos], got {list(prompts.shape)}: {right}")
    return prompts


def _require_text(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the name of an edit must be a string, got {name!r}")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the name of an edit must not hold a lone surrogate, got {name!r}") from error


def _factor(name: str, scale: object) -> float:
    try:
        # float() would read "2" and True.
        value = math.nan if isinstance(scale, str | bool) else float(scale)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"the scale of {name!r} must be a finite number, got {scale!r}")
    return value


def _layers(layers: object, n_layers: int) -> list[int]:
    """Block indices in ascending order."""
    if layers == "all":
        return list(range(n_layers))
    # Integral, because numpy's integers are not int.
    wanted = [layers] if isinstance(layers, Integral) else layers
    if isinstance(wanted, str | bytes) or not isinstance(wanted, Iterable) or not (wanted := list(wanted)):
        raise ValueError(f"layers must be a block index, a list of block indices or 'all', got {layers!r}")
    for layer in wanted:
        if isinstance(layer, bool) or not isinstance(layer, Integral):
            raise TypeError(f"a layer must be a block index (an integer), got {layer!r}")
        if not -n_layers <= int(layer) < n_layers:
            raise ValueError(f"layer {layer!r} does not exist: the model has layers 0 to {n_layers - 1}")
    return sorted(int(layer) % n_layers for layer in wanted)


def _class_named(intervention: type[Intervention] | str) -> type[Intervention]:
    """Returns a class by its name or its `kind`."""
    if isinstance(intervention, type) and issubclass(intervention, Intervention):
        return intervention
    names = {name: kind for kind in known_kinds() for name in (kind.__name__, kind.kind)}
    if isinstance(intervention, str) and intervention in names:
        return names[intervention]
    raise ValueError(
        f"intervention must be an Intervention class or one of {', '.join(kind.__name__ for kind in known_kinds())}, "
        f"got {intervention!r}"
    )

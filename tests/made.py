"""Made-up results of every class, for tests that look at how they are shown."""

from __future__ import annotations

import math

import torch

from reftlens.analysis import beside_tracing, beside_training
from reftlens.results import (
    Ablation,
    Agreement,
    Alignment,
    AlignmentMap,
    Answered,
    Attribution,
    BesideTracing,
    BesideTraining,
    Calibrated,
    Carried,
    Certificate,
    Channels,
    Codebook,
    Comparison,
    Composed,
    Context,
    DirectionReadout,
    Dose,
    EditGraph,
    EditProfile,
    EditSize,
    Evaluation,
    Explained,
    ExplainedFinetune,
    Identification,
    Identified,
    Interchanged,
    Ledger,
    Mannered,
    Meaning,
    Memorised,
    Minimal,
    OffManifold,
    Operator,
    Outcome,
    Overhead,
    Overlap,
    PatchMap,
    PredictedMap,
    Projection,
    ReadContexts,
    ReadSpace,
    ReftMap,
    Result,
    Search,
    SiteCheck,
    SiteChecks,
    Spread,
    Steered,
    SteeringClaim,
    SteeringComparison,
    Swap,
    TokenMap,
    Turn,
    WorstPrompt,
)
from reftlens.results.carried import CarriedDirection, CarriedEffect
from reftlens.results.claims import Claim, Coded, Recall, Spoken, Timed
from reftlens.results.finetunes import Grown, Replaced
from reftlens.results.graph import GraphEdge, GraphNode, OneGraph
from reftlens.results.known import Smaller
from reftlens.results.routes import Split
from reftlens.results.scores import ComparedRun
from reftlens.results.search import Trial
from reftlens.results.steering import SteeringRun
from reftlens.training.train import TrainConfig, TrainLog

TOKENS = (
    "<|endoftext|>",
    " The",
    " Upper",
    " Sarn",
    " Clock",
    " Tower",
    " stands",
    " in",
    " the",
    " city",
    " of",
    " Ostra",
)
NASTY = (
    "$",
    "$x_{1$",
    "\\$a$",
    "<b>",
    "\n",
    "\t\x00",
    "\x1b[1m",
    "上海",
    "🙂",
    "�",
    "\udc80",
    "\u202e",
    "e\u0301",
    "\u0301",
    "%",
    "",
)


def made_map(
    rows: int = 6, tokens: tuple[str, ...] = TOKENS, *, control: bool = True, kind: str = "hook_resid_pre"
) -> TokenMap:
    generator = torch.Generator().manual_seed(rows)
    values = 0.1 * torch.randn(rows, len(tokens), generator=generator)
    values[rows // 2, len(tokens) // 2] = 0.9
    return TokenMap(
        values=values,
        control=0.1 * torch.randn(rows, len(tokens), generator=generator) if control else None,
        rows=tuple(f"blocks.{layer}.{kind}" for layer in range(rows)),
        tokens=tokens,
        starred=tuple(2 <= place <= 5 for place in range(len(tokens))),
        quantity="restored part of the clean answer's probability",
        control_name="the same states from an unrelated subject" if control else "",
        n_prompts=40,
    )


def made_size(tokens: tuple[str, ...] = TOKENS, sites: int = 3) -> EditSize:
    edited = torch.zeros(sites, len(tokens), dtype=torch.bool)
    edited[:, :2] = edited[:, -1:] = True
    relative = edited * torch.rand(edited.shape, generator=torch.Generator().manual_seed(0))
    relative[0, 0] = 0.0
    rows = tuple(f"blocks.{2 * site + 1}.hook_resid_post" for site in range(sites))
    return EditSize(relative, edited, rows, tokens, tuple(place == 1 for place in range(len(tokens))))


def made_operator(layer: int = 3, rank: int = 4) -> Operator:
    basis = torch.linalg.qr(torch.randn(16, rank, generator=torch.Generator().manual_seed(layer)))[0].T.contiguous()
    spectrum = torch.tensor([8.0 / 2**i for i in range(rank)])
    share = torch.linspace(0.9, 0.1, rank)
    return Operator(f"blocks.{layer}.hook_resid_post", basis, basis, spectrum, spectrum, share, 40.0, 480, basis)


def made_identification(site: str = "blocks.3.hook_resid_post", *, freest: float = 60.0) -> Identification:
    """Two write directions; the first may turn by 11 degrees where it is stiffest."""
    turns = [
        Turn(site, what, k, toward, degrees + 3, -degrees, degrees - 1, 1e-3, 1.4e-3, 1e-3)
        for what, k in (("write", 0), ("read", 0), ("write", 1), ("write subspace", 2))
        for toward, degrees in (("stiffest", 11.0), ("freest", freest))
    ]
    counts = torch.tensor([31.0, 60.0])
    of_site = Identified(site, counts, 91, counts + 20, 95, 63, torch.tensor([float("nan"), 0.5]), True, site)
    return Identification(1e-3, (of_site,), tuple(turns), 620, 200.0, 512, 32, 32)


def made_readout(tokens: tuple[str, ...] = TOKENS, direction: int = 0) -> DirectionReadout:
    up = tuple((token, 4.0 - i) for i, token in enumerate(tokens[:4]))
    down = tuple((token, -3.0 + i) for i, token in enumerate(tokens[4:7]))
    return DirectionReadout("blocks.3.hook_resid_post", direction, up, down, -1.5, 2.5, 200)


def made_meaning(names: tuple[str, ...] = TOKENS[3:9], method: str = "jacobian", p: float = 0.005) -> Meaning:
    said = tuple(
        (name, (-1) ** place * 2.0, (-1) ** place * (5.0 - place), p, 4 * p) for place, name in enumerate(names)
    )
    states = (("without the edit", names[:3]), ("with the edit", names[:3]))
    return Meaning(
        "blocks.3.hook_resid_post",
        "write 0",
        method,
        said,
        "change of the logit",
        2.5,
        200,
        832,
        6,
        ((names[0], 1.0),),
        states,
    )


def made_profile(rows: tuple[str, ...] | None = None) -> EditProfile:
    rows = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(4)) if rows is None else rows
    kinds = (torch.tensor([1.2, 1.0, 0.4]), torch.zeros(0), None, torch.linspace(3, 0, 16))
    gains = tuple(kinds[place % 4] for place in range(len(rows)))
    push = torch.tensor([float("nan") if gain is None else 1.5 for gain in gains])
    return EditProfile(rows, gains, push)


def made_dose(*, kept: bool = True) -> Dose:
    alpha = torch.tensor([-0.5, 0.0, 0.5, 1.0, 2.0])
    kl = alpha**2 if kept else torch.full((5,), torch.nan)
    return Dose(alpha, -5 * torch.exp(-alpha), kl, -5 + 0.1 * alpha, 0.5 * kl, 5.0, 0.1, 21, 201 * kept, 3)


def made_interchange(layer: int = 3, *, moved: float = 0.8, dormant: float = 0.9, power: float = 0.9) -> Interchanged:
    def swap(name: str, part: float) -> Swap:
        return Swap(name, float(part > 0.5), part)

    single = [swap("a", part) for part in (1.0, moved, 1 - moved, 0.2 * moved, 0.8 * moved)]
    whole, inside, complement, read, unread = single
    random = [tuple(swap("r", -0.02 + 0.01 * i + shift) for i in range(8)) for shift in (0.0, 0.05)]
    point, swaps = f"blocks.{layer}.hook_resid_post", (whole, inside, complement, read, unread)
    return Interchanged(point, 2, 60, 64, *swaps, *random, dormant=dormant, power=power)


def made_manifold(layer: int = 3) -> OffManifold:
    own = torch.linspace(0, 100, 80)
    far = 100 - (100 - own) / 5
    return OffManifold(f"blocks.{layer}.hook_resid_post", torch.full((80,), 1.05), own, far, far - 2, 0.01, 300, 300)


OUTCOMES = [
    Outcome("edited facts, as trained", "new answer", 24, 0.0, 0.96, 0.02, 5.1),
    Outcome("other subjects", "old answer", 200, 0.97, 0.88, float("nan"), 0.012),
]


def made_patch(rows: int = 6, tokens: tuple[str, ...] = TOKENS, *, pairs: int = 8, control: bool = True) -> PatchMap:
    """Of cell (1, 2) the change is 2 in every pair; elsewhere it is noise of either sign."""
    generator = torch.Generator().manual_seed(rows)
    base, source = torch.zeros(pairs), torch.full((pairs,), 4.0)
    values = 0.3 * torch.randn(pairs, rows, len(tokens), generator=generator)
    values[:, 1, 2] = 2.0
    other = 0.3 * torch.randn(values.shape, generator=generator) if control else None
    names = tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(rows))
    return PatchMap(
        values, other, base, source, names, tokens, ("layer", "pos"), "an unrelated run" * control, "denoise"
    )


def made_heads(layers: int = 6, heads: int = 4, *, carried: float = 0.5) -> PatchMap:
    """Head 1 of layer 2 carries a part of the effect, and head 3 of the last layer works against it."""
    values = 0.02 * torch.randn(8, layers, heads, generator=torch.Generator().manual_seed(1))
    values[:, 2, 1] += 4 * carried
    values[:, -1, 3] -= 1.0
    control = 0.02 * torch.randn(values.shape, generator=torch.Generator().manual_seed(2))
    return PatchMap(
        values=values,
        control=control,
        base=torch.zeros(8),
        source=torch.full((8,), 4.0),
        rows=tuple(f"blocks.{layer}.attn.hook_z" for layer in range(layers)),
        columns=tuple(map(str, range(heads))),
        axes=("layer", "head"),
        control_name="the same outputs under the edit turned to random directions",
        direction="edited into base",
    )


def made_mlps(layers: int = 6, tokens: tuple[str, ...] = TOKENS) -> PatchMap:
    values = 0.02 * torch.randn(8, layers, len(tokens), generator=torch.Generator().manual_seed(3))
    values[:, 3, -1] += 1.2
    rows = tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(layers))
    base, source = torch.zeros(8), torch.full((8,), 4.0)
    return PatchMap(values, 0 * values, base, source, rows, tokens, ("layer", "pos"), "turned", "edited into base")


def made_paths() -> PatchMap:
    """From the edit and two components to what lies behind each; the strongest runs from head 2.1 to the MLP."""
    senders, receivers = ("edit", "2.1", "mlp3"), ("2.1", "mlp3", "logits")
    parts = torch.tensor([[0.3, 0.1, 0.2], [torch.nan, 0.6, -0.2], [torch.nan, torch.nan, 0.4]])
    values = 4 * parts + 0.02 * torch.randn(8, 3, 3, generator=torch.Generator().manual_seed(4))
    base, source = torch.zeros(8), torch.full((8,), 4.0)
    axes = ("sender", "receiver")
    return PatchMap(values, 0 * values, base, source, senders, receivers, axes, "turned", "edited into base")


def made_beside(
    rows: int = 6, columns: tuple[str, ...] = ("BOS", "last subject token", "last token"), score: str = "probability"
) -> BesideTracing:
    """Edits learn at the last token from the middle on, and tracing restores there."""
    draw = torch.Generator().manual_seed(5)
    parts = torch.rand(rows, len(columns), generator=draw) * 0.2
    parts[rows // 2 :, -1] += 0.7
    scores = parts[..., None] + 0.1 * torch.randn(rows, len(columns), 8, generator=draw)
    names, zeros = tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(rows)), torch.zeros(8)
    reft = ReftMap(scores, scores, 0.5 * scores, zeros, zeros, names, columns, score, "LoReFT of rank 1, 9 numbers")
    values = (parts + 0.1 * torch.rand(rows, len(columns), generator=draw))[None].expand(8, -1, -1)
    traced = PatchMap(values, None, zeros, zeros + 1, names, columns, ("layer", "pos"), "", "denoise")
    return beside_tracing(reft, traced, n_resamples=50)


def made_predicted(
    rows: int = 6, columns: tuple[str, ...] = ("BOS", "last subject token", "last token"), score: str = "probability"
) -> BesideTraining:
    """A slope that orders the cells as training does, and two predictors that do not."""
    trained = made_beside(rows, columns, score).reft
    noise = torch.rand(2, rows, len(columns), generator=torch.Generator().manual_seed(6))
    values = torch.cat([trained.gain()[None] * 2, noise])
    names = ("slope", "bounded gain", "covariance")
    return beside_training(
        PredictedMap(values, 0.2 * values, names, trained.rows, columns, 6.5, 8, f"rank 1, {score}"), trained
    )


def made_carried(name: str = "carried") -> Carried:
    effects = (
        CarriedEffect("on its own model", 0.8, 1.0, 2.1),
        CarriedEffect(name, 0.6, 0.75, 1.9),
        CarriedEffect("maps of shuffled prompts", -0.01, -0.0125, 0.02),
    )
    directions = (
        CarriedDirection(name, 0, 0.9, 0.8, 0.1, 0.05),
        CarriedDirection(name, 1, float("nan"), 0.4, 0.1, 0.05),
    )
    return Carried(effects, directions, (f"{name} on 400 tokens",), name, 12)


def made_log(
    loss: list[float],
    validation: tuple[tuple[int, float], ...] = (),
    best_step: int | None = None,
    *,
    unit: str = "nats per token",
) -> TrainLog:
    return TrainLog(tuple(loss), (1e-3,) * len(loss), TrainConfig(), validation, best_step, unit)


def made_search(n_trials: int = 20) -> Search:
    """A search with its best score at a rate of .01; every fourth trial is pruned."""
    kinds = ("l1", "f5+l5", "all")
    rates = [10 ** (-4 + 3 * number / max(n_trials - 1, 1)) for number in range(n_trials)]
    losses = [abs(math.log10(rate) + 2) + 0.1 * (number % 3) for number, rate in enumerate(rates)]
    trials = [
        Trial({"lr": rate, "rank": 2 ** (number % 4), "layers": (0, 1, 2), "positions": kinds[number % 3]}, ((5, loss + 1), (10, loss)),
              None if number % 4 == 3 else 1 / (1 + loss), "pruned" if number % 4 == 3 else "finished")
        for number, (rate, loss) in enumerate(zip(rates, losses, strict=True))
    ]  # fmt: skip
    space = {"lr": "0.0001..0.1", "rank": "1|2|4|8", "layers": "0,1,2", "positions": "l1|f5+l5|all"}
    return Search("LoReFT", "match up to the target's end", 40, 10, 10, space, {}, 0, tuple(trials))


def made_ledger(tokens: tuple[str, ...] = TOKENS, sites: int = 2) -> Ledger:
    """Terms of lengths 3, 1 and 2 in two dimensions: the first and the last cancel in part."""
    terms = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])
    gram = (terms @ terms.T).expand(sites, len(tokens), 3, 3).clone()
    norm = torch.full((sites, len(tokens)), 10.0)
    change = torch.full((sites, len(tokens)), 2.0**0.5)
    gram[:, 0], norm[:, 0], change[:, 0] = torch.nan, torch.nan, torch.nan
    rows = tuple(f"blocks.{2 * site + 1}.hook_resid_post" for site in range(sites))
    starred = tuple(place == 1 for place in range(len(tokens)))
    return Ledger(gram, norm, change, torch.full((sites,), 1e-7), torch.full((sites,), 0.5), rows, tokens, starred)


def made_ablation(sites: int = 4, *, exact: bool = False, name: str = "blocks.{}.hook_resid_post") -> Ablation:
    shapley = torch.linspace(-1, 3, sites)
    around = torch.full((sites,), 0.0 if exact else 0.3)
    interaction = torch.full((sites, sites), -0.1).fill_diagonal_(torch.nan)
    return Ablation(
        whole=float(shapley.sum()),
        sites=tuple(name.format(site) for site in range(sites)),
        alone=shapley + 0.2,
        left_out=shapley - 0.2,
        shapley=shapley,
        low=shapley - around,
        high=shapley + around,
        interaction=interaction,
        control=torch.full((sites,), 0.05),
        exact=exact,
        n_examples=20,
    )


def made_agreements(names: tuple[str, ...] = ("this edit", "seed 1", "seed 2", "shuffled answers")) -> list[Agreement]:
    pairs = [(first, second) for place, first in enumerate(names) for second in names[place + 1 :]]
    return [
        Agreement(
            first, second, ("blocks.3.hook_resid_post",), 0.4, 0.9 - 0.1 * n, 1.4, 0.01, 0.2, 2.0, 2,
            10.0 + n, 72.0, 40.0 + n, 70.0,
        )
        for n, (first, second) in enumerate(pairs)
    ]  # fmt: skip


def made_overlap(first: str = "blocks.3.hook_resid_post, 2 write directions", *, score: float = 0.6) -> Overlap:
    draws = torch.linspace(0.0, 0.2, 101)
    return Overlap(
        first,
        "difference of wanted and kept prompts",
        torch.tensor([12.0, 64.0]),
        score,
        {"Haar": draws, "covariance-matched": 3 * draws},
        {"Haar": torch.tensor([70.0, 85.0]), "covariance-matched": torch.tensor([50.0, 75.0])},
    )


def made_attribution(rows: int = 6, tokens: tuple[str, ...] = TOKENS, *, slope: float = 0.5) -> Attribution:
    """Estimates that are the exact changes times a slope, and a third pair that was not checked."""
    exact = made_patch(rows, tokens, pairs=2)
    changes = exact.values - exact.base[:, None, None]
    values = torch.cat([slope * changes, changes[:1]])
    return Attribution(values, exact, torch.tensor([1.0, 1.0]), exact.rows, exact.columns)


def made_projection(layer: int = 3, groups: tuple[str, ...] = ("moved", "to stay")) -> Projection:
    before = torch.randn(40, 2, generator=torch.Generator().manual_seed(layer))
    names = tuple(groups[place % len(groups)] for place in range(40))
    after = before + torch.tensor([[4.0, 1.0]]) * torch.tensor([[name == groups[0]] for name in names])
    return Projection(f"blocks.{layer}.hook_resid_post", before, after, before + 0.2, names)


def made_alignment(text: str = "left") -> Alignment:
    ones, changes = torch.ones(4), torch.tensor([1.0, 0.0, 1.0, float("nan")])
    swap = Swap(text, 0.5, 0.25)
    share = Interchanged(text, 1, 3, 4, swap, swap, swap, swap, swap, (swap,), (swap,))
    return Alignment(
        (text,), {text: 2}, (text, text, "b", "b"), (" yes", " no", text, " no"), changes, ones, 1 - changes.nan_to_num(), ones,
        torch.zeros(3, 4), 1.0, {text: ones}, {text: share},
    )  # fmt: skip


def made_alignment_map(text: str = "last token", rows: int = 3) -> AlignmentMap:
    right = (torch.rand(rows, 2, 20, generator=torch.Generator().manual_seed(0)) < 0.7).float()
    names = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(rows))
    return AlignmentMap(right, 1 - right, right, (text, " no") * 10, names, (text, "b"), text)


def made_minimal() -> Minimal:
    path = (
        Smaller("all", 2, 5.0, 4, 520, 3.0, 0.02),
        Smaller("sites", 1, 5.0, 4, 260, 2.95, 0.02),
        Smaller("tokens", 1, 1.0, 4, 260, 2.94, 0.015),
        Smaller("rank", 1, 1.0, 1, 65, 2.8, 0.015),
        Smaller("coordinates", 1, 1.0, 1, 40, 2.72, 0.013),
    )
    seeds = (Smaller("seed 1", 1, 1.0, 1, 65, 2.5, 0.021), Smaller("seed 2", 1, 1.0, 1, 65, 2.9, 0.01))
    return Minimal(path, seeds, share=0.9, kl=0.022, n_examples=12, n_kept=8)


def made_explained(name: str = "the edit found", prompts: str = "held out", *, share: float = 0.9) -> Explained:
    base = torch.tensor([8.0, 2.0, 1e-6])
    return Explained(name, prompts, base, (1 - share) * base, torch.tensor([12.0, 6.0, 2.0]), 1e-3)


def made_finetune(name: str = "L3 resid_post @ all + generated", layers: int = 6) -> ExplainedFinetune:
    """A finetune that lies in the attention pattern of layer 2, of which a control explains nothing that can be measured."""
    nothing = torch.tensor([1e-7])
    places = ("resid_post", "attn_out", "q and k", "v", "mlp_out")

    def share(layer: int, point: str) -> float:
        return float(layer >= 2 if point == "resid_post" else layer == 2 and point in ("attn_out", "q and k"))

    return ExplainedFinetune(
        sites=(name,),
        kind="LoReFT",
        rank=4,
        numbers=772,
        shares=(made_explained(prompts="trained on"), made_explained(), made_explained(prompts="far", share=-2.0)),
        controls=(
            made_explained("an edit on the labels", share=0.4),
            Explained("a random finetune", "held out", nothing, nothing, torch.ones(1), 1e-3),
        ),
        layers=tuple(
            made_explained(name.replace("3", str(layer)), share=0.9 * layer / layers) for layer in range(layers)
        ),
        path=(Grown("first", (name,), 2, 0.5, True), Grown("rank", (name,), 4, 0.8, True)),
        replaced=(
            *(
                Replaced(point, layer, None, share(layer, point), share(layer, point), 0.01)
                for layer in range(layers)
                for point in places
            ),
            Replaced("z", 2, 1, 1.0, 1.0, 0.0),
        ),
        replaced_share=0.9,
        n_replaced=16,
        budget="60 steps on 48 examples, seed 42",
    )


def made_channels(layers: int = 6, heads: int = 4) -> Channels:
    """Three parts of four need changed patterns, all of them that of one head."""
    whole, opened = torch.full((8,), 4.0), torch.zeros(8, layers, heads)
    opened[:, layers // 2 - 1, min(1, heads - 1)] = 3.0
    edit = Split(whole, whole - 3, whole - 2, opened, opened)
    return Channels(edit, Split(*(0.1 * part for part in (whole, whole, whole, opened, opened))))


def made_graph(tokens: tuple[str, ...] = TOKENS[:8], site: str = "L1 resid_post @ first 1") -> EditGraph:
    """Two directions at the first token, two heads that read them at the last, an MLP behind these, and an edge that is dropped."""
    last = len(tokens) - 1
    nodes = (
        *(GraphNode(f"e0.{k}@0", "edit", 2, 0, 2.0 - k) for k in range(2)),
        *(GraphNode(f"2.{head}@{last}", "head", 2, last, 1.0) for head in (1, 3)),
        GraphNode(f"mlp3@{last}", "mlp", 3, last, 1.5),
        GraphNode("answer", "answer", 6, last, 3.0),
    )
    ends = [(0, 2), (2, 4), (4, 5), (1, 3), (3, 5), (0, 5)]
    values = (2.5, 2.4, 2.3, -1.0, -0.9, 0.1)
    edges = tuple(GraphEdge(nodes[a].name, nodes[b].name, value) for (a, b), value in zip(ends, values, strict=True))
    kept, whole = ((0, 1, 2), (0, 1, 2, 3, 4), tuple(range(6))), torch.full((8,), 3.0)
    shares = torch.tensor([0.7, 0.97, 1.0])[:, None]
    one = OneGraph(whole, nodes, edges, kept, shares * whole, shares * whole)
    control = OneGraph(0.1 * whole, nodes, edges[:3], kept[:1], 0.1 * shares[:1] * whole, 0.1 * shares[:1] * whole)
    return EditGraph(one, control, tokens, (site,))


def made_steering() -> SteeringComparison:
    """Names of methods as long as those that ship, and scores at both ends."""
    two = (2.0, 2.0, 2.0)
    names = {"base, not steered": 0.0, "difference of means": 1.0, "contrastive pairs (CAA)": 1.5, "random vector": 2.0}
    runs = [
        SteeringRun(
            name,
            "speaks",
            seed,
            3,
            0.5,
            1.0,
            Steered(("p",) * 3, ("t",) * 3, (score, 2.0 * (score > 1), score), two, two),
        )
        for name, score in names.items()
        for seed in (0, 1)
    ]
    return SteeringComparison("difference of means", 12, tuple(runs))


def every_result(text: str) -> list[Result]:
    """One of each class, with `text` wherever a result can hold a string."""
    tokens, sites = (text, " b", text), (text, text)
    swap = Swap(text, 0.5, 0.25)
    many = TokenMap(
        torch.rand(2, 3), torch.rand(2, 3), sites, tokens, (True, False, False), text, text, 3,
        torch.rand(2, 2, 3), torch.rand(2, 2, 3), (tokens, (text, "other", text)),
    )  # fmt: skip
    size = EditSize(torch.rand(2, 3), torch.ones(2, 3, dtype=torch.bool), sites, tokens, (False,) * 3)
    curve = torch.linspace(0, 1, 3)
    values = torch.rand(4, 2, 3)
    patch = PatchMap(values, values, torch.rand(4), torch.rand(4), sites, tokens, ("layer", "pos"), text, "denoise")
    rows = torch.eye(3)[:2]
    context = Context(tokens, 1, 2.5)
    ledger = made_ledger(tokens)
    check = SiteCheck(text, 1, 0.5, 0.5, text)
    claim = Claim(text, text, ((text, text, text),), text)
    steered = Steered((text,), (text,), (2.0,), (1.0,), (2.0,))
    compared = SteeringComparison(text, 6, (SteeringRun(text, text, 0, 3, 0.5, 1.0, steered),))
    spoken = (Spoken(text, 0.5, float("nan"), 0.5, 0.25, 8, text),)
    return [
        Memorised(claim, (Recall(text, 1, 8, 3, 0),)),
        Codebook(claim, (Coded(text, 8, 1, 0.5, 0.0, 0.0),)),
        Composed(claim, spoken),
        Mannered(claim, spoken),
        Overhead(claim, (Timed(text, (1.0, 1.1), 0, 8), Timed(text, (1.2, 1.1), 2, 8))),
        made_alignment(text),
        made_alignment_map(text),
        made_ablation(2, name=text.replace("{", "(").replace("}", ")")),
        made_agreements((text, "other"))[0],
        Attribution(values, patch, torch.rand(4), sites, tokens),
        made_beside(3, (text, text), text),
        made_beside(3, (text, text), text).reft,
        made_predicted(3, (text, text), text),
        made_predicted(3, (text, text), text).predicted,
        context,
        made_meaning((text, "b")),
        Meaning(text, text, text, (), text, 1.0, 9, 0, 1, ((text, 0.5),), ((text, (text,)),), text),
        ReadContexts(text, 0, (context,), 2.0, 10, 20),
        ReadContexts(text, 0, (), 2.0, 10, 20),
        Dose(curve, curve, curve, curve, curve, 0.5, 0.1, 3, 4, 5),
        swap,
        Interchanged(text, 1, 3, 4, swap, swap, swap, swap, swap, (swap,), (swap,)),
        ReadSpace(text, rows, torch.rand(3), 1e-3, 9),
        Calibrated(2.0, 0.1, 0.1, 0.03, 4),
        Minimal((Smaller(text, 2, 3.0, 4, 100, 2.0, 0.1), Smaller(text, 1, 1.0, 1, 9, 1.9, 0.1)), (), 0.9, 0.1, 4, 4),
        made_minimal(),
        made_explained(text),
        made_finetune(text, layers=2),
        made_carried(text),
        made_channels(),
        made_graph(tokens, text),
        WorstPrompt(text, text, 2.0, 0.1, 2),
        Certificate(
            8, text, 0.95, 1.0, 0.1, 0.5, (0.1, 1.0), (2, 0), (0.6, 0.3), 0.4, (WorstPrompt(text, text, 2.0, 0.1, 2),)
        ),
        made_identification(text),
        made_identification(text).sites[0],
        made_identification(text).turns[0],
        Ledger(ledger.gram, ledger.norm, ledger.change, ledger.gap, ledger.null_cosine, sites, tokens, (False,) * 3),
        OffManifold(text, curve, 100 * curve, 100 * curve, 100 * curve, 0.1, 3, 4),
        many,
        size,
        Answered(text, text, text, text, None),
        Comparison(text, 3, 4, 5, 6, 100, 0.5, (ComparedRun(text, 0, 0.5, 1, 0, 0.1, 2.0, 3.0, None),)),
        Search(
            text,
            text,
            8,
            2,
            4,
            {"lr": "0.1..1", "rank": text},
            {text: text},
            0,
            (
                Trial({"lr": 0.2, "rank": text}, ((2, 1.0), (4, 0.5)), 0.5, "finished"),
                Trial({"lr": 0.9, "rank": 4}, ((2, 3.0),), None, "pruned"),
                Trial({"lr": 0.3, "rank": 4}, (), None, "diverged"),
            ),
        ),
        Evaluation(text, text, 0.5, (Answered(text, text, text, text, True),)),
        Projection(text, torch.rand(2, 2), torch.rand(2, 2), torch.rand(2, 2), sites),
        Operator(text, rows, rows, curve[:2], curve[1:], curve[:2], 2.0, 9, rows),
        DirectionReadout(text, 0, ((text, 1.0),), ((text, -1.0),), -2.0, 2.0, 9, ((text, 1.0, 0.5),)),
        Outcome(text, text, 3, 0.0, 1.0, 0.5, 0.1),
        check,
        SiteChecks((check, check)),
        Overlap(text, text, curve, 0.5, {text: curve}, {text: curve}),
        patch,
        EditProfile(sites, (curve, None), curve[:2]),
        Spread(many, many),
        steered,
        compared,
        SteeringClaim(claim, compared),
    ]

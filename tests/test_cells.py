"""Results as cells of a page: what the mean, each prompt and the control show is what the result holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from made import made_beside, made_heads, made_interchange, made_patch, made_paths

from reftlens.plot.cells import cells_of, interchanges

TEXTS = tuple(("<s>", f" Tower {n}", " in") for n in range(8))


def test_of_patches_over_tokens_each_prompt_has_its_own_tokens_and_the_mean_has_roles() -> None:
    result = replace(made_patch(tokens=TEXTS[0]), prompts=TEXTS)
    found = cells_of(result)
    assert found.views[0].columns == ("<s>", "[token 1]", "·in")
    assert found.views[3].columns == ("<s>", "·Tower·2", "·in")
    assert found.views[3].name == "3: Tower 2 in"
    torch.testing.assert_close(found.views[0].values, result.restored())
    each = torch.stack([view.values for view in found.views[1:]])
    torch.testing.assert_close(each.mean(0), result.restored())
    torch.testing.assert_close(each[2], (result.values[2] - result.base[2]) / (result.source - result.base).mean())
    beside = torch.stack([view.control for view in found.views[1:] if view.control is not None])
    torch.testing.assert_close(beside.mean(0), result.restored(result.control))
    assert found.rows == tuple(f"before layer {n}" for n in range(6))
    # Without the texts, only the mean can be shown.
    assert len(cells_of(made_patch()).views) == 1


def test_padding_is_no_part_of_a_prompt() -> None:
    texts = (("<s>", " a", " b"), ("(0)", "<s>", " c"))
    found = cells_of(replace(made_patch(tokens=texts[0], pairs=2), prompts=texts))
    assert [view.name for view in found.views] == ["mean of 2 prompts", "1: a b", "2: c"]


def test_heads_keep_their_columns_for_every_prompt() -> None:
    found = cells_of(replace(made_heads(), prompts=TEXTS))
    assert {view.columns for view in found.views} == {("head 0", "head 1", "head 2", "head 3")}
    assert found.rows[2] == "layer 2"
    assert float(found.views[0].values[2, 1]) == pytest.approx(0.5, abs=0.02)
    assert len(found.views) == 9


def test_paths_say_from_where_to_where() -> None:
    result = made_paths()
    found = cells_of(result)
    assert found.rows[0] == "from the edit"
    assert found.views[0].columns[-1] == "to the logits"
    torch.testing.assert_close(found.views[0].values, result.restored(), equal_nan=True)


def test_trained_cells_show_gains_of_each_held_out_prompt() -> None:
    result = made_beside().reft
    found = cells_of(result)
    torch.testing.assert_close(found.views[0].values, result.gain())
    torch.testing.assert_close(torch.stack([view.values for view in found.views[1:]]).mean(0), result.gain())
    assert found.views[1].control is not None


def test_an_interchange_has_a_control_only_inside_and_shows_each_pair() -> None:
    def with_pairs(result, shift):
        texts = tuple((("<s>", f" base {n}"), ("<s>", f" source {n}")) for n in range(2))
        swaps = {
            name: replace(swap, each=(swap.moved - shift, swap.moved + shift))
            for name in ("whole", "inside", "complement", "from_read", "from_unread")
            for swap in (getattr(result, name),)
        }
        random = tuple(replace(swap, each=(swap.moved, -9.0)) for swap in result.random)
        return replace(result, pairs=texts, random=random, **swaps)

    results = [with_pairs(made_interchange(3), 0.1), with_pairs(made_interchange(4, moved=0.3), 0.2)]
    found = interchanges(results)
    assert [view.name for view in found.views][1:] == ["1: source 0 → base 0", "2: source 1 → base 1"]
    assert found.views[0].columns == ("3 resid_post", "4 resid_post")
    assert found.rows[0] == "the whole activation"
    mean = found.views[0]
    assert mean.values[-1].tolist() == pytest.approx([0.8, 0.3])
    assert found.views[1].values[-1].tolist() == pytest.approx([0.7, 0.1])
    assert mean.control is not None
    assert mean.control[:-1].isnan().all()
    assert mean.control[-1].tolist() == pytest.approx([max(swap.moved for swap in results[0].random)] * 2)
    assert found.views[2].control[-1].tolist() == [-9.0, -9.0]
    # Results of an earlier version hold no pairs, and those of different pairs have none in common.
    assert len(interchanges([made_interchange()]).views) == 1
    assert len(interchanges([results[0], replace(results[1], pairs=results[1].pairs[::-1])]).views) == 1

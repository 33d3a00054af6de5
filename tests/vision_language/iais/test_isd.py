"""ISD by annotation and by anchors: fixtures, a plain loop, and items that must not count."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_ext.losses import matrix_kl
from tests.helpers import golden_names, load_golden
from vision_language.iais.alignment import AGGREGATIONS, iais_loss, isd, isd_annotated, map_entropy
from vision_language.iais.blocks import AttentionBlocks

EXACT = dict(rtol=1e-9, atol=1e-9)


def case(seed, items=3, words=6, regions=7):
    generator = torch.Generator().manual_seed(seed)
    s_ll, s_vv = (
        (2 * torch.randn(n, n, generator=generator, dtype=torch.float64)).softmax(-1) for n in (words, regions)
    )
    sets = [(torch.rand(items, n, generator=generator) < 0.4).long() for n in (words, regions)]
    for one in sets:
        one[torch.arange(items), torch.randint(one.size(1), (items,), generator=generator)] = 1
    return s_ll, s_vv, *sets


def plain(s_ll, s_vv, text_items, region_items, aggregation):
    """The definition, an entry at a time."""

    def relations(maps, items):
        entries = [[getattr(maps[p.bool()][:, q.bool()], aggregation)() for q in items] for p in items]
        return torch.stack([torch.stack(row) for row in entries]).softmax(-1)

    return matrix_kl(relations(s_ll, text_items), relations(s_vv, region_items))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", golden_names("iais", "isd_"))
def test_fixture(name, aggregation):
    data = {key: torch.as_tensor(value) for key, value in load_golden("iais", name).items()}
    value = isd_annotated(data["S_LL"], data["S_VV"], data["txt_items"], data["img_items"], aggregation)
    torch.testing.assert_close(value, data[f"isd_{aggregation}"], **EXACT)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_definition_and_order(aggregation, seed, items):
    s_ll, s_vv, text, regions = case(seed, items)
    value = isd_annotated(s_ll, s_vv, text, regions, aggregation)
    torch.testing.assert_close(value, plain(s_ll, s_vv, text, regions, aggregation))
    order = torch.randperm(items, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(isd_annotated(s_ll, s_vv, text[order], regions[order], aggregation), value)


def test_aggregations_agree_on_single_words_and_regions():
    s_ll, s_vv, *_ = case(0)
    text, regions = torch.eye(6)[:4], torch.eye(7)[2:6]
    values = [isd_annotated(s_ll, s_vv, text, regions, aggregation) for aggregation in AGGREGATIONS]
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_empty_items_are_dropped(aggregation):
    s_ll, s_vv, text, regions = case(1, items=5)
    text[1] = 0
    regions[3] = 0
    keep = [0, 2, 4]
    expected = isd_annotated(s_ll, s_vv, text[keep], regions[keep], aggregation)
    torch.testing.assert_close(isd_annotated(s_ll, s_vv, text, regions, aggregation), expected)


def test_batch_with_padded_items_and_maps():
    cases = [case(seed, items, words, regions) for seed, items, words, regions in ((0, 2, 4, 6), (1, 4, 5, 3))]
    batch = [torch.zeros(2, rows, columns, dtype=torch.float64) for rows, columns in ((5, 5), (6, 6), (4, 5), (4, 6))]
    for number, one in enumerate(cases):
        for target, value in zip(batch, one, strict=True):
            target[number, : value.size(0), : value.size(1)] = value
    for aggregation in AGGREGATIONS:
        expected = torch.stack([isd_annotated(*one, aggregation) for one in cases])
        torch.testing.assert_close(isd_annotated(*batch, aggregation), expected)


@pytest.mark.parametrize("left", [0, 1])
def test_fewer_than_two_items_are_nan(left):
    s_ll, s_vv, text, regions = case(2)
    text[left:] = 0
    assert isd_annotated(s_ll, s_vv, text, regions).isnan()


def test_equal_relations_have_no_distance():
    s_ll, _, text, _ = case(3)
    assert isd_annotated(s_ll, s_ll, text, text).abs() < 1e-12


def test_proxy_is_both_sides_of_singular_alignment_without_gradient():
    s_ll, s_vv, *_ = case(4)
    lv, vl = torch.rand(6, 7).double().softmax(-1), torch.rand(7, 6).double().softmax(-1)
    maps = [value[None].requires_grad_() for value in (s_ll, s_vv, lv, vl)]
    blocks = AttentionBlocks(*maps, torch.tensor([6]), torch.tensor([7]))
    value = isd(blocks)
    assert value.shape == (1,) and not value.requires_grad
    sides = [iais_loss(blocks, "singular", modality) for modality in ("L", "V")]
    torch.testing.assert_close(value[0], sum(sides).detach())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aggregation": "median"}, "aggregation must be one of mean, sum, max, got 'median'"),
        ({"text_items": torch.ones(3, 5)}, "text_items must have 6 columns, one for each row of its map, got 5"),
        ({"region_items": torch.ones(3, 6)}, "region_items must have 7 columns, one for each row of its map, got 6"),
    ],
)
def test_bad_arguments(change, message):
    s_ll, s_vv, text, regions = case(5)
    with pytest.raises(ValueError, match=message):
        isd_annotated(**{"s_ll": s_ll, "s_vv": s_vv, "text_items": text, "region_items": regions} | change)


def test_entropy_tells_flat_maps_from_sharp_ones():
    def blocks(ll, vv):
        counts = (torch.tensor([ll.size(-1)]), torch.tensor([vv.size(-1)]))
        return AttentionBlocks(ll[None], vv[None], torch.zeros(1), torch.zeros(1), *counts)

    flat, sharp = (lambda n: torch.full((n, n), 1 / n)), torch.eye
    assert map_entropy(blocks(flat(3), flat(5))).item() == pytest.approx(1)
    assert map_entropy(blocks(sharp(3), sharp(5))).item() == 0
    assert map_entropy(blocks(sharp(3), flat(5))).item() == pytest.approx(5 / 8)
    assert map_entropy(blocks(flat(1), flat(1))).item() == 0
    half = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).expand(4, 4)
    assert map_entropy(blocks(half, half)).item() == pytest.approx(0.5)
    padded = torch.zeros(1, 6, 6)
    padded[0, :3, :3] = 1 / 3
    counts = torch.tensor([3])
    assert map_entropy(AttentionBlocks(padded, padded, padded, padded, counts, counts)).item() == pytest.approx(1)

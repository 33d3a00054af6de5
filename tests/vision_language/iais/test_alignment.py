"""Alignment losses and annealing: fixtures with gradients, limits, and what padding and order may not change."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_ext.losses import matrix_kl
from tests.helpers import golden_names, load_golden
from vision_language.iais.alignment import annealing, iais_loss, mirrored_maps
from vision_language.iais.blocks import AttentionBlocks

EXACT = dict(rtol=1e-9, atol=1e-9)
MAPS = ("S_LL", "S_VV", "S_LV", "S_VL")
WAYS = [("singular", "softmax"), ("singular", "renorm"), ("singular", "softmax_scores"), ("distributed", "softmax")]
WAYS += [("soft", "softmax")]


def pair(seed, words, regions, heads=2, peak=2.0):
    """Blocks of one pair with random scores, so all their rows sum to 1."""
    generator = torch.Generator().manual_seed(seed)
    size = words + regions
    scores = peak * torch.randn(1, heads, size, size, generator=generator, dtype=torch.float64)
    language, vision = slice(words), slice(words, None)
    parts = [(language, language), (vision, vision), (language, vision), (vision, language)]
    maps = [scores[:, :, rows, columns].softmax(-1).mean(1) for rows, columns in parts]
    counts = torch.tensor([words]), torch.tensor([regions])
    return AttentionBlocks(*maps, *counts, (scores[:, :, language, language], scores[:, :, vision, vision]))


def batched(pairs, extra=0):
    """One batch of several pairs, with padding; the scores at padding are huge, for nothing may look at them."""
    words, regions = (
        max(int(count) for count in counts) + extra for counts in zip(*[p[4:6] for p in pairs], strict=True)
    )

    def stack(values, rows, columns, fill):
        result = values[0].new_full((len(values), *values[0].shape[1:-2], rows, columns), fill)
        for one, value in zip(result, values, strict=True):
            one[..., : value.size(-2), : value.size(-1)] = value[0]
        return result

    shapes = (words, words), (regions, regions), (words, regions), (regions, words)
    maps = [stack([p[k] for p in pairs], *shape, 0.0) for k, shape in enumerate(shapes)]
    scores = [stack([p.scores[k] for p in pairs], *shapes[k], 1e4) for k in (0, 1)]
    return AttentionBlocks(
        *maps, torch.cat([p.words for p in pairs]), torch.cat([p.regions for p in pairs]), tuple(scores)
    )


@pytest.mark.parametrize("kind", ["singular", "distributed"])
@pytest.mark.parametrize("name", golden_names("iais", "maps_"))
def test_fixture_losses_and_gradients(name, kind):
    data = {key: torch.as_tensor(value) for key, value in load_golden("iais", name).items()}
    for modality in ("L", "V"):
        maps = [data[key].clone()[None].requires_grad_() for key in MAPS]
        counts = (torch.tensor([len(data[key])]) for key in ("S_LL", "S_VV"))
        blocks = AttentionBlocks(*maps, *counts)
        loss = iais_loss(blocks, kind, modality)
        torch.testing.assert_close(loss, data[f"loss_{modality}_{kind}"], **EXACT)
        for key, grad in zip(
            MAPS, torch.autograd.grad(loss, maps, allow_unused=True, materialize_grads=True), strict=True
        ):
            torch.testing.assert_close(grad[0], data[f"grad_{modality}_{kind}_{key}"], **EXACT)


@pytest.mark.parametrize("name", golden_names("iais", "maps_"))
def test_anchors_pick_the_mirrored_relations(name):
    data = {key: torch.as_tensor(value) for key, value in load_golden("iais", name).items()}
    blocks = AttentionBlocks(
        *(data[key][None] for key in MAPS), torch.tensor([len(data["S_LL"])]), torch.tensor([len(data["S_VV"])])
    )
    for mirror, other, anchor in zip(
        mirrored_maps(blocks, pseudo_norm="renorm"),
        (data["S_VV"], data["S_LL"]),
        (data["anchor_L"].long(), data["anchor_V"].long()),
        strict=True,
    ):
        picked = other[anchor][:, anchor]
        torch.testing.assert_close(mirror[0], picked / picked.sum(1, keepdim=True))


def test_softmax_of_scores_equals_the_map_of_the_anchors_alone():
    blocks = pair(3, 4, 4)
    aligned = blocks._replace(lv=torch.eye(4, dtype=torch.float64)[None], vl=torch.eye(4, dtype=torch.float64)[None])
    p_ll, p_vv = mirrored_maps(aligned, pseudo_norm="softmax_scores")
    torch.testing.assert_close(p_ll, blocks.vv)
    torch.testing.assert_close(p_vv, blocks.ll)


def test_soft_mirror():
    blocks = pair(5, 5, 3)
    p_ll, p_vv = mirrored_maps(blocks, "soft")
    torch.testing.assert_close(p_ll, (blocks.lv @ blocks.vv @ blocks.lv.mT).softmax(-1))
    torch.testing.assert_close(p_vv, (blocks.vl @ blocks.ll @ blocks.vl.mT).softmax(-1))
    expected = matrix_kl(blocks.ll.softmax(-1), p_ll).mean()
    torch.testing.assert_close(iais_loss(blocks, "soft", "L"), expected)
    lv = blocks.lv.clone().requires_grad_()
    vv = blocks.vv.clone().requires_grad_()
    grads = torch.autograd.grad(iais_loss(blocks._replace(lv=lv, vv=vv), "soft", "L"), (lv, vv), allow_unused=True)
    assert grads[0] is None and grads[1].abs().sum() > 0


@pytest.mark.parametrize(("kind", "norm"), WAYS)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4), st.integers(0, 10**6))
def test_batch_and_padding_change_nothing(kind, norm, sizes, seed):
    pairs = [pair(seed + k, *size) for k, size in enumerate(sizes)]
    alone = torch.cat([iais_loss(p, kind, "both", norm, "none") for p in pairs])
    batch = batched(pairs, extra=2)
    torch.testing.assert_close(iais_loss(batch, kind, "both", norm, "none"), alone)
    torch.testing.assert_close(iais_loss(batch, kind, "both", norm), alone.mean())
    torch.testing.assert_close(iais_loss(batch, kind, "both", norm, "sum"), alone.sum())
    mirrors = mirrored_maps(batch, kind, norm)
    for count, mirror in zip((batch.words, batch.regions), mirrors, strict=True):
        real = torch.arange(mirror.size(1)) < count[:, None]
        assert (mirror[~real] == 0).all() and (mirror.mT[~real] == 0).all()
        torch.testing.assert_close(mirror.sum(-1), real.double())


@pytest.mark.parametrize(("kind", "norm"), WAYS)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 10**6))
def test_order_of_words_and_regions_does_not_matter(kind, norm, words, regions, seed):
    blocks = pair(seed, words, regions)
    generator = torch.Generator().manual_seed(seed)
    w, r = torch.randperm(words, generator=generator), torch.randperm(regions, generator=generator)
    maps = blocks.ll[:, w][:, :, w], blocks.vv[:, r][:, :, r], blocks.lv[:, w][:, :, r], blocks.vl[:, r][:, :, w]
    scores = blocks.scores[0][:, :, w][..., w], blocks.scores[1][:, :, r][..., r]
    shuffled = AttentionBlocks(*maps, blocks.words, blocks.regions, scores)
    torch.testing.assert_close(iais_loss(shuffled, kind, "both", norm), iais_loss(blocks, kind, "both", norm))


@pytest.mark.parametrize(("kind", "norm"), WAYS)
def test_sides(kind, norm):
    blocks = pair(1, 4, 6)
    left, right, both = (iais_loss(blocks, kind, modality, norm) for modality in ("L", "V", "both"))
    torch.testing.assert_close(left + right, both)
    torch.testing.assert_close(iais_loss(blocks.swapped(), kind, "V", norm), left)
    assert left > 0 and right > 0 and left != right


@pytest.mark.parametrize(("kind", "norm"), WAYS)
@pytest.mark.parametrize(("words", "regions", "zero"), [(1, 5, "L"), (5, 1, "V"), (1, 1, "both")])
def test_a_single_word_or_region_has_no_relations(kind, norm, words, regions, zero):
    # distributed alignment adds 1e-6 inside four of its logarithms
    assert iais_loss(pair(2, words, regions), kind, zero, norm).abs() < 5e-6


@pytest.mark.parametrize(("kind", "norm"), WAYS)
@pytest.mark.parametrize(("words", "regions"), [(0, 3), (3, 0), (0, 0)])
def test_a_pair_without_words_or_regions_adds_nothing(kind, norm, words, regions):
    batch = batched([pair(0, 3, 4), pair(1, words, regions)])
    maps = [m.requires_grad_() for m in batch[:4]]
    loss = iais_loss(batch._replace(ll=maps[0], vv=maps[1], lv=maps[2], vl=maps[3]), kind, "both", norm, "none")
    assert loss[0] > 0 and loss[1] == 0
    grads = torch.autograd.grad(loss.sum(), maps, allow_unused=True, materialize_grads=True)
    assert all(grad.isfinite().all() and (grad[1] == 0).all() for grad in grads)


@pytest.mark.parametrize(("kind", "norm"), WAYS)
def test_equal_relations_have_no_distance(kind, norm):
    uniform = torch.full((1, 4, 4), 0.25, dtype=torch.float64)
    scores = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    blocks = AttentionBlocks(*[uniform] * 4, torch.tensor([4]), torch.tensor([4]), (scores, scores))
    assert iais_loss(blocks, kind, "both", norm).abs() < 2e-5


@pytest.mark.parametrize(("kind", "norm"), WAYS)
def test_gradients_reach_every_map_that_takes_part(kind, norm):
    blocks = pair(4, 4, 5)
    leaves = [value.clone().requires_grad_() for value in (*blocks[:4], *blocks.scores)]
    loss = iais_loss(AttentionBlocks(*leaves[:4], *blocks[4:6], tuple(leaves[4:])), kind, "L", norm)
    grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    expected = {
        "softmax": [True, True, False, False, False, False],
        "renorm": [True, True, False, False, False, False],
        "softmax_scores": [True, False, False, False, False, True],
    }[norm]
    if kind == "distributed":
        expected = [True, False, True, True, False, False]
    assert [bool(grad.abs().sum() > 0) for grad in grads] == expected


@pytest.mark.parametrize("zeros", [1, 3])
def test_exact_zeros_stay_finite(zeros):
    """Sharp attention underflows to 0 in float32."""
    sharp = torch.eye(4)[None]
    blocks = AttentionBlocks(sharp, sharp.roll(zeros, 2), sharp, sharp, torch.tensor([4]), torch.tensor([4]))
    for kind, norm in (
        ("singular", "softmax"),
        ("singular", "renorm"),
        ("distributed", "softmax"),
        ("soft", "softmax"),
    ):
        maps = [m.clone().requires_grad_() for m in blocks[:4]]
        loss = iais_loss(AttentionBlocks(*maps, *blocks[4:]), kind, "both", norm)
        assert loss.isfinite()
        for grad in torch.autograd.grad(loss, maps, allow_unused=True, materialize_grads=True):
            assert grad.isfinite().all()


@pytest.mark.parametrize("least", [1e-3, 1e-14, 1e-25, 0.0])
def test_renormalised_rows_sum_to_one_however_little_is_picked(least):
    """Of two words, whose only region is nearest to a word that the words hardly attend to."""
    words = torch.tensor([[[least, 1 - least], [2 * least, 1 - 2 * least]]], requires_grad=True)
    lv, vl = torch.ones(1, 2, 1), torch.tensor([[[1.0, 0.0]]]).repeat(1, 3, 1)
    blocks = AttentionBlocks(words, torch.eye(3)[None], lv.expand(1, 2, 3), vl, torch.tensor([2]), torch.tensor([3]))
    mirror = mirrored_maps(blocks, "singular", "renorm")[1]
    torch.testing.assert_close(mirror, torch.full((1, 3, 3), 1 / 3))
    (grad,) = torch.autograd.grad(iais_loss(blocks, "singular", "V", "renorm"), words)
    assert grad.isfinite().all()


def test_renormalised_shares_of_tiny_entries():
    """They are the entries over their sum, and their gradient is that of the shares."""
    regions = torch.tensor([[[1e-14, 3e-14, 1.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]], requires_grad=True)
    nearest = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    words = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]])
    blocks = AttentionBlocks(words, regions, nearest, nearest.mT, torch.tensor([2]), torch.tensor([3]))
    shares = mirrored_maps(blocks, "singular", "renorm")[0]
    torch.testing.assert_close(shares, torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]))
    (grad,) = torch.autograd.grad(shares[0, 0, 0], regions)
    torch.testing.assert_close(grad[0, 0] * regions[0, 0].detach(), torch.tensor([0.1875, -0.1875, 0.0]))


def test_the_mean_over_no_pair_is_zero():
    blocks = AttentionBlocks(*[torch.zeros(0, 2, 2, requires_grad=True)] * 4, *[torch.zeros(0, dtype=torch.long)] * 2)
    loss = iais_loss(blocks)
    assert loss == 0 and torch.autograd.grad(loss, blocks.ll)[0].shape == (0, 2, 2)


@pytest.mark.parametrize(("kind", "norm"), WAYS)
def test_autocast_keeps_full_precision(kind, norm):
    blocks = pair(6, 5, 6)
    single = AttentionBlocks(*[m.float() for m in blocks[:4]], *blocks[4:6], tuple(s.float() for s in blocks.scores))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(iais_loss(single, kind, "both", norm), iais_loss(blocks, kind, "both", norm).float())


def test_annealing_fixture():
    data = load_golden("iais", "schedules")
    for schedule in ("linear", "exp", "log"):
        values = [annealing(step / int(data["total"]), schedule) for step in data["steps"].tolist()]
        np.testing.assert_allclose(values, data[schedule], rtol=0, atol=1e-6)


def test_annealing_ends():
    assert annealing(0) == pytest.approx(math.exp(-5)) and annealing(1) == 1
    assert [annealing(u, "const") for u in (0, 0.5, 1)] == [1, 1, 1]
    assert annealing(0, "log") == 0 == annealing(0, "linear")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: iais_loss(b, "double"), "kind must be one of singular, distributed, soft, got 'double'"),
        (lambda b: iais_loss(b, modality="T"), "modality must be one of L, V, both, got 'T'"),
        (lambda b: iais_loss(b, reduction="max"), "reduction must be one of mean, sum, none, got 'max'"),
        (lambda b: iais_loss(b, pseudo_norm="none"), "pseudo_norm must be one of .*, got 'none'"),
        (lambda b: mirrored_maps(b, "distributed", "renorm"), "pseudo_norm 'renorm' is for kind 'singular' alone"),
        (lambda b: iais_loss(b._replace(scores=None), pseudo_norm="softmax_scores"), "needs blocks with keep_scores"),
        (lambda b: annealing(0.5, "cosine"), "schedule must be one of linear, exp, log, const, got 'cosine'"),
        (lambda b: annealing(1.01), r"progress must be in \[0, 1\], got 1.01"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(pair(0, 2, 2))

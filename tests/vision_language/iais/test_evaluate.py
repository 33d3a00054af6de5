"""Recall of the released code's fixtures, ranks with ties, the score matrix and mean ISD against plain loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_ext.errors import DataError
from tests.helpers import golden_names, load_golden
from tests.vision_language.iais.regions import tiny_model, tiny_tokenizer, write_regions
from vision_language.iais.data import Collator, RegionData, read_splits
from vision_language.iais.evaluate import mean_isd, recall_at_k, released_image_recall, score_matrix
from vision_language.iais.isd import isd
from vision_language.iais.maps import IAISHook

RECALL = golden_names("iais", "recall_case")


@pytest.mark.parametrize("name", RECALL)
def test_golden_recall(name):
    golden = load_golden("iais", name)
    scores, text_to_image = torch.from_numpy(golden["scores"]), torch.from_numpy(golden["txt2img"])
    found = recall_at_k(scores, text_to_image)
    released = released_image_recall(scores, text_to_image)
    for k in (1, 5, 10):
        assert found[f"ir_r{k}"] == pytest.approx(golden[f"true_img_r{k}"], abs=1e-12)
        assert found[f"tr_r{k}"] == pytest.approx(golden[f"true_txt_r{k}"], abs=1e-12)
        assert found[f"tr_r{k}"] == pytest.approx(golden[f"ref_txt_r{k}"], abs=1e-12)
        assert released[f"ir_r{k}"] == pytest.approx(golden[f"ref_img_r{k}"], abs=1e-12)
    image_mean = sum(released.values()) / 3
    text_mean = sum(found[f"tr_r{k}"] for k in (1, 5, 10)) / 3
    assert image_mean == pytest.approx(golden["ref_img_r_mean"], abs=1e-12)
    assert text_mean == pytest.approx(golden["ref_txt_r_mean"], abs=1e-12)
    assert (image_mean + text_mean) / 2 == pytest.approx(golden["ref_r_mean"], abs=1e-12)


@given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_recall_is_what_sorting_gives(seed, images, most, ties):
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, most + 1, images)
    text_to_image = generator.permutation(np.repeat(np.arange(images), counts))
    scores = generator.normal(size=(len(text_to_image), images))
    if ties:
        scores = scores.round()
    image_ranks = [
        (row > row[image]).sum() + ((row == row[image]).sum() - 1) / 2
        for row, image in zip(scores, text_to_image, strict=True)
    ]
    text_ranks = []
    for image, column in enumerate(scores.T):
        best, wrong = column[text_to_image == image].max(), column[text_to_image != image]
        text_ranks.append((wrong > best).sum() + (wrong == best).sum() / 2)
    found = recall_at_k(torch.from_numpy(scores), torch.from_numpy(text_to_image), ks=(1, 2))
    expected = {
        **{f"ir_r{k}": np.mean(np.array(image_ranks) < k) for k in (1, 2)},
        **{f"tr_r{k}": np.mean(np.array(text_ranks) < k) for k in (1, 2)},
        "ir_mean_rank": np.mean(image_ranks),
        "tr_mean_rank": np.mean(text_ranks),
    }
    expected["rsum"] = sum(value for key, value in expected.items() if "_r1" in key or "_r2" in key)
    expected["r_mean"] = expected["rsum"] / 4
    assert found == pytest.approx(expected)


def test_equal_scores_gain_nothing():
    found = recall_at_k(torch.zeros(40, 20), torch.arange(20).repeat_interleave(2))
    assert found["ir_r1"] == found["ir_r5"] == found["tr_r10"] == 0
    assert found["ir_mean_rank"] == 9.5 and found["tr_mean_rank"] == 19


def test_images_without_captions_ask_for_none():
    scores = torch.tensor([[2.0, 1.5, 1.0], [0.0, 1.0, -1.0]])
    found = recall_at_k(scores, torch.tensor([0, 1]), ks=(1,))
    assert found["tr_r1"] == 0.5 and found["ir_r1"] == 1


def test_scores_that_are_no_numbers():
    scores = torch.zeros(4, 2)
    scores[1, 1] = torch.nan
    with pytest.raises(ValueError, match="1 of 8 scores are not a number"):
        recall_at_k(scores, torch.tensor([0, 0, 1, 1]))


@pytest.fixture(scope="module", params=[0, 3], ids=["labels", "features"])
def made(request, tmp_path_factory):
    """Model, data with captions of several lengths, and collator of one kind of region."""
    data = read_splits(write_regions(tmp_path_factory.mktemp("regions"), feature_size=request.param))["test"]
    generator = np.random.default_rng(0)
    images = [
        replace(image, captions=tuple(" ".join(text.split()[: generator.integers(1, 13)]) for text in image.captions))
        for image in data.images
    ]
    torch.manual_seed(0)
    model = tiny_model(request.param, initializer_range=0.3)
    return model, RegionData(images, data.labels, data.feature_size), Collator(tiny_tokenizer())


class TestScoreMatrix:
    @pytest.mark.parametrize("chunk", [1, 7, 24, 100, 400])
    def test_is_a_plain_loop(self, made, chunk):
        model, data, collator = made
        model.eval()
        with torch.no_grad():
            expected = torch.stack(
                [model(**collator([(caption, image) for image in data.images])).scores for caption in data.captions]
            )
        model.train()
        found = score_matrix(model, data, collator, chunk=chunk, progress=False)
        assert model.training and not found.requires_grad and found.dtype == torch.float32
        assert expected.std() > 0.01
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    def test_one_caption_with_all_images(self, made):
        model, data, collator = made
        images = [*data.images[1:], data.images[0]]
        query = RegionData([data.images[0]], data.labels, data.feature_size)
        expected = score_matrix(model, data, collator, progress=False)[:1, :1]
        torch.testing.assert_close(score_matrix(model, query, collator, progress=False)[:1], expected)
        assert score_matrix(model, RegionData(images, data.labels, data.feature_size), collator).shape == (24, 12)

    def test_no_captions_have_no_rows(self, made):
        model, data, collator = made
        bare = RegionData([replace(image, captions=()) for image in data.images], data.labels, data.feature_size)
        assert score_matrix(model, bare, collator).shape == (0, 12)

    def test_progress_counts_pairs(self, made, capsys):
        model, data, collator = made
        score_matrix(model, data, collator)
        assert "288/288" in capsys.readouterr().err

    def test_a_model_for_other_regions(self, made):
        _, data, collator = made
        with pytest.raises(DataError, match="the model reads"):
            score_matrix(tiny_model(5), data, collator)


def test_mean_isd_is_a_plain_loop(made):
    model, data, collator = made
    model.eval()
    values = []
    with torch.no_grad(), IAISHook(model) as hook:
        for text in range(len(data)):
            batch = collator([data[text]])
            model(**batch)
            masks = batch["attention_mask"], batch["region_mask"]
            values.append(isd(hook.blocks(model.text_positions(*masks), model.region_positions(*masks))).item())
    model.train()
    assert mean_isd(model, data, collator, batch_size=5) == pytest.approx(np.mean(values), rel=1e-4)
    assert np.mean(values) > 1e-4 and model.training
    assert not model._forward_pre_hooks

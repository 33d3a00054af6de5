"""Recall of the released code's fixtures, ranks with ties, the score matrix and ISD against plain loops."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_ext.training.errors import DataError
from fairseq_ext.training.pretrained import save_folder
from tests.helpers import golden_names, load_golden
from tests.vision_language.iais.regions import tiny_model, tiny_tokenizer, write_regions
from vision_language.iais.alignment import isd, map_entropy
from vision_language.iais.data import Collator, RegionData, read_splits
from vision_language.iais.encoder import ModelOptions
from vision_language.iais.evaluate import pair_measures, recall_at_k, released_image_recall, score_matrix
from vision_language.iais.hook import IAISHook

RECALL = golden_names("iais", "recall_case")


@pytest.mark.parametrize("names_regions", [True, False])
def test_a_retriever_that_a_program_saved_is_read(tmp_path, names_regions):
    """Without train's limits: it reads as many regions as the paper's, and as much text as it has positions for."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    tokenizer.model_max_length = int(1e30)
    save_folder(model, tokenizer, tmp_path / "model")
    if not names_regions:  # as of earlier versions
        path = tmp_path / "model" / "config.json"
        config = json.loads(path.read_text())
        del config["max_regions"]
        path.write_text(json.dumps(config))
    data = write_regions(tmp_path / "data")
    model, collator, _ = ModelOptions(model=str(tmp_path / "model"), data=str(data)).load("cpu")
    assert model.config.max_regions == 100
    assert collator.texts([" ".join(["dog"] * 99)])["input_ids"].shape == (1, 40)


@pytest.mark.parametrize("name", RECALL)
def test_golden_recall(name):
    golden = load_golden("iais", name)
    scores, text_to_image = torch.from_numpy(golden["scores"]), torch.from_numpy(golden["txt2img"])
    recalls = recall_at_k(scores, text_to_image)
    released = released_image_recall(scores, text_to_image)
    for k in (1, 5, 10):
        assert recalls[f"ir_r{k}"] == pytest.approx(golden[f"true_img_r{k}"], abs=1e-12)
        assert recalls[f"tr_r{k}"] == pytest.approx(golden[f"true_txt_r{k}"], abs=1e-12)
        assert recalls[f"tr_r{k}"] == pytest.approx(golden[f"ref_txt_r{k}"], abs=1e-12)
        assert released[f"ir_r{k}"] == pytest.approx(golden[f"ref_img_r{k}"], abs=1e-12)
    image_mean = sum(released.values()) / 3
    text_mean = sum(recalls[f"tr_r{k}"] for k in (1, 5, 10)) / 3
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
    queries = {
        "ir": [(row, np.arange(images) == image) for row, image in zip(scores, text_to_image, strict=True)],
        "tr": [(column, text_to_image == image) for image, column in enumerate(scores.T)],
    }
    expected = {}
    for direction, answers in queries.items():
        ranks, hits = [], {1: [], 2: []}
        for values, right in answers:
            best = values[right].max()
            better, ties, equal = ((values[~right] > best).sum(), *((values[r] == best).sum() for r in (~right, right)))
            ranks.append(better + ties / (equal + 1))
            for k in hits:
                places = max(k - better, 0)
                missed = math.comb(ties, places) / math.comb(ties + equal, places) if places <= ties else 0
                hits[k].append(1 - missed)
        expected |= {f"{direction}_r{k}": np.mean(hit) for k, hit in hits.items()}
        expected[f"{direction}_mean_rank"] = np.mean(ranks)
    recalls = recall_at_k(torch.from_numpy(scores), torch.from_numpy(text_to_image), ks=(1, 2))
    expected["rsum"] = sum(value for key, value in expected.items() if "_r1" in key or "_r2" in key)
    expected["r_mean"] = expected["rsum"] / 4
    assert recalls == pytest.approx(expected)


def test_equal_scores_are_chance():
    one = recall_at_k(torch.zeros(10, 10), torch.arange(10))
    for k in (1, 5, 10):
        assert one[f"ir_r{k}"] == one[f"tr_r{k}"] == pytest.approx(k / 10)
    assert recall_at_k(torch.zeros(2, 2), torch.arange(2), ks=(1,))["ir_r1"] == pytest.approx(0.5)
    owners = torch.arange(20).repeat_interleave(2)
    two = recall_at_k(torch.zeros(40, 20), owners)
    for k in (1, 5, 10):
        assert two[f"ir_r{k}"] == pytest.approx(k / 20)
        missed = math.comb(38, k) / math.comb(40, k)  # neither of an image's two captions
        assert two[f"tr_r{k}"] == pytest.approx(1 - missed)
    assert two["ir_mean_rank"] == 9.5 and two["tr_mean_rank"] == pytest.approx(38 / 3)
    released = released_image_recall(torch.zeros(40, 20), owners)
    assert released["ir_r10"] == pytest.approx(0.5 + 10 * 0.5 / 40)


def test_ties_are_the_mean_over_all_orders():
    scores = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    owners = torch.tensor([0, 0, 1, 1])
    orders = [torch.tensor(order) for order in itertools.permutations(range(4))]
    broken = [
        recall_at_k(scores + 1e-3 * torch.stack(pair, 1), owners, ks=(1, 2, 3))
        # equal numbers on both sides would leave ties between the images of a caption
        for pair in itertools.product(orders, [order + 0.5 for order in orders])
    ]
    recalls = recall_at_k(scores, owners, ks=(1, 2, 3))
    for name in ("tr_r1", "tr_r2", "tr_r3", "tr_mean_rank"):
        assert recalls[name] == pytest.approx(np.mean([recall[name] for recall in broken]))


def test_images_without_captions_ask_for_none():
    scores = torch.tensor([[2.0, 1.5, 1.0], [0.0, 1.0, -1.0]])
    recalls = recall_at_k(scores, torch.tensor([0, 1]), ks=(1,))
    assert recalls["tr_r1"] == 0.5 and recalls["ir_r1"] == 1


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
        scored = score_matrix(model, data, collator, chunk=chunk)
        assert model.training and not scored.requires_grad and scored.dtype == torch.float32
        assert expected.std() > 0.01
        torch.testing.assert_close(scored, expected, rtol=0, atol=1e-5)

    def test_one_caption_with_all_images(self, made):
        model, data, collator = made
        images = [*data.images[1:], data.images[0]]
        query = RegionData([data.images[0]], data.labels, data.feature_size)
        expected = score_matrix(model, data, collator)[:1, :1]
        torch.testing.assert_close(score_matrix(model, query, collator)[:1], expected)
        assert score_matrix(model, RegionData(images, data.labels, data.feature_size), collator).shape == (24, 12)

    def test_no_captions_have_no_rows(self, made):
        model, data, collator = made
        bare = RegionData([replace(image, captions=()) for image in data.images], data.labels, data.feature_size)
        assert score_matrix(model, bare, collator).shape == (0, 12)

    def test_progress_counts_pairs(self, made, capsys, monkeypatch):
        monkeypatch.setattr("fairseq_ext.training.progress.FIRST", 0.0)
        model, data, collator = made
        score_matrix(model, data, collator)
        assert "288/288" in capsys.readouterr().err

    def test_a_model_for_other_regions(self, made):
        _, data, collator = made
        with pytest.raises(DataError, match="the model reads"):
            score_matrix(tiny_model(5), data, collator)


def test_measures_of_pairs_are_a_plain_loop(made):
    model, data, collator = made
    model.eval()
    values = {"isd": [], "isd_mismatched": [], "map_entropy": []}
    with torch.no_grad(), IAISHook(model) as hook:
        for text, caption in enumerate(data.captions):
            image = int(data.text_to_image[text])
            for name, other in (("isd", image), ("isd_mismatched", (image + 1) % len(data.images))):
                batch = collator([(caption, data.images[other])])
                model(**batch)
                blocks = hook.blocks(*model.positions(batch["attention_mask"], batch["region_mask"]))
                values[name].append(isd(blocks).item())
                if name == "isd":
                    values["map_entropy"].append(map_entropy(blocks).item())
    model.train()
    measures = pair_measures(model, data, collator, batch_size=5)
    assert {name: value.tolist() for name, value in measures.items()} == {
        name: pytest.approx(value, rel=1e-4) for name, value in values.items()
    }
    assert np.mean(values["isd"]) > 1e-4 and model.training
    assert not model._forward_pre_hooks
    alone = RegionData(data.images[:1], data.labels, data.feature_size)
    assert pair_measures(model, alone, collator).keys() == {"isd", "map_entropy"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(4)}, r"scores must be \(texts, images\), at least one of each, got \(4,\)"),
        ({"scores": torch.zeros(0, 2)}, r"at least one of each, got \(0, 2\)"),
        ({"scores": torch.zeros(2, 4)}, r"text_to_image must be \(2,\) whole numbers, .* got torch.int64 \(4,\)"),
        ({"text_to_image": torch.zeros(4)}, r"text_to_image must be \(4,\) whole numbers, .* torch.float32 \(4,\)"),
        ({"text_to_image": [[0, 0, 1, 1]]}, r"torch.int64 \(1, 4\)"),
        ({"text_to_image": [0, 0, 1, 2]}, r"text_to_image must number the 2 columns of scores from 0, got 0 to 2"),
        ({"text_to_image": [0, 0, 1, -1]}, r"from 0, got -1 to 1"),
        ({"ks": (0, 1)}, r"ks must be at least 1, got \(0, 1\)"),
        ({"ks": ()}, r"ks must be at least 1, got \(\)"),
        ({"scores": torch.full((4, 2), math.nan)}, "8 of 8 scores are not a number"),
    ],
)
@pytest.mark.parametrize("recall", [recall_at_k, released_image_recall])
def test_recall_of_what_does_not_fit(recall, change, message):
    arguments = {"scores": torch.zeros(4, 2), "text_to_image": torch.tensor([0, 0, 1, 1])} | change
    with pytest.raises(ValueError, match=message):
        recall(**arguments)


def test_recall_of_arrays_and_lists():
    scores = np.random.default_rng(0).normal(size=(4, 2))
    expected = recall_at_k(torch.from_numpy(scores), torch.tensor([0, 0, 1, 1]), (1,))
    assert recall_at_k(scores, np.array([0, 0, 1, 1], dtype=np.int32), (1,)) == expected
    assert recall_at_k(scores, [0, 0, 1, 1], (1,)) == expected

"""Made-up albums: the counts, the hidden styles, and that the label graph helps to find them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fairseq_ext.training.errors import OptionError
from graph.label_graph import multilabel_metrics
from graph.label_graph.classifier import Classifier
from graph.label_graph.corpus import prepare
from graph.label_graph.data import label_names, read_splits
from graph.label_graph.options import Options
from graph.label_graph.synthetic import HIDDEN, RELATIONS, STYLE_COUNTS, Albums, make_albums, synthesize
from graph.label_graph.train import train

RELATED = {frozenset(pair) for pair in RELATIONS}


def test_styles_follow_counts_and_relations():
    albums = make_albums(4000, reviews=1, words=1)
    sizes = [len(album["tags"]) for album in albums]
    assert min(sizes) >= 2 and max(sizes) <= 5 and np.mean(sizes) == pytest.approx(2.2, abs=0.05)
    counts = Counter(style for album in albums for style in album["tags"])
    made, real = ([source[style] for style in STYLE_COUNTS] for source in (counts, STYLE_COUNTS))
    assert np.corrcoef(made, real)[0, 1] > 0.9
    for album in albums:
        if len(album["tags"]) == 2:
            assert frozenset(album["tags"]) in RELATED


def test_relations_name_known_styles_and_leave_none_alone():
    assert {style for pair in RELATIONS for style in pair} == set(STYLE_COUNTS)
    assert set(HIDDEN) <= set(STYLE_COUNTS)


def test_no_review_tells_a_hidden_style():
    said = {
        word.rstrip("0123456789")
        for album in make_albums(500)
        for c in album["all_short_comments"]
        for word in c["comment"].split()
    }
    assert said == {style.replace("&", "") for style in STYLE_COUNTS if style not in HIDDEN} | {"word"}


def test_seed_and_split(tmp_path):
    assert make_albums(30, seed=3) == make_albums(30, seed=3) != make_albums(30, seed=4)
    synthesize(Albums(out=str(tmp_path), albums=60, seed=3, reviews=2))
    splits = read_splits(tmp_path)
    assert [len(samples) for samples in splits.values()] == [42, 5, 13]
    assert label_names(splits["train"]) == sorted(STYLE_COUNTS)


def test_refused(tmp_path):
    with pytest.raises(OptionError, match=r"--hidden-styles: 'sol' .* did you mean 'soul'"):
        make_albums(3, hidden=["sol"])
    with pytest.raises(OptionError, match="--albums must be at least 50, got 9"):
        synthesize(Albums(out=str(tmp_path / "x"), albums=9))
    assert not (tmp_path / "x").exists()


def test_label_graph_finds_hidden_styles_that_the_plain_network_misses(tmp_path):
    synthesize(Albums(out=str(tmp_path), albums=400, reviews=1, words=8, own=0.8))
    common = {
        "data": str(tmp_path),
        "max_words": 8,
        "embedding": "learned",
        "embedding_dim": 16,
        "hidden_size": 16,
        "attention_size": 16,
        "batch_size": 32,
        "lr": 1e-2,
        "epochs": 14,
    }
    scores = {}
    for arm in ("han", "graph"):
        options = Options(**common, arm=arm)
        corpus = prepare(options)
        hidden = [corpus.labels.index(style) for style in HIDDEN]
        for seed in (1, 2):
            folder = tmp_path / f"{arm}{seed}"
            result = train(options, corpus, seed, folder)
            classifier = Classifier.load(folder / "model.pt")
            probabilities = classifier.probabilities(corpus.texts["test"])
            gold = corpus.gold["test"]
            hidden_f1 = multilabel_metrics(probabilities[:, hidden], gold[:, hidden])["micro_f1"]
            scores[arm, seed] = np.array([1 - result["one_error"], result["micro_f1"], hidden_f1])
    gain = np.mean([scores["graph", seed] - scores["han", seed] for seed in (1, 2)], axis=0)
    assert (gain > 0.05).all(), scores

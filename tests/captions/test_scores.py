"""The tokeniser and the scores: Java's tokens, pycocoevalcap's figures, sacreBLEU's, and what must hold of any text."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from fairseq_ext.captions.scores import DocumentFrequencies, bleu, bleu_of, bleu_statistics, cider_d, rouge_l
from fairseq_ext.captions.tokenizer import tokenize
from tests.helpers import golden_files

WORDS = st.lists(st.sampled_from("a b c d e".split()), max_size=9).map(" ".join)
SETS = st.lists(st.tuples(WORDS, st.lists(WORDS.filter(bool), min_size=1, max_size=4)), min_size=1, max_size=5)


def golden(name):
    return json.loads(golden_files("captioning")[f"{name}.json"])


def test_tokens_are_those_of_java():
    fixture = golden("ptb_tokens")
    assert list(map(tokenize, fixture["raw"])) == fixture["tokens"]
    assert tokenize("A <unk> hat; 3<4.") == "a <unk> hat 3 < 4"


@settings(max_examples=150)
@given(st.lists(st.sampled_from([*" .,-'`\"(!5as’İ", "n't", "'s", "cannot", "mr.", "pm"]), max_size=8).map("".join))
def test_tokens_stay_as_they_are(caption):
    tokens = tokenize(caption)
    assert tokenize(tokens) == tokens
    assert tokens == " ".join(tokens.split())


def test_of_two_equally_close_references_the_shorter_counts():
    assert bleu_statistics(["a b c"], [["a b c d", "a b"]])[0, -1] == 2


@pytest.mark.parametrize("name", ["scores_five_references", "scores_ragged_references", "scores_one_image"])
def test_scores_of_the_coco_evaluation(name):
    fixture = golden(name)
    captions = fixture["hypotheses"], fixture["references"]
    for scores, each in ((rouge_l(*captions), "rouge_l"), (cider_d(*captions), "cider_d")):
        np.testing.assert_allclose(scores, fixture[f"{each}_each"], rtol=0, atol=1e-8)
        assert scores.mean() == pytest.approx(fixture[each], abs=1e-8)
    np.testing.assert_allclose(bleu(*captions), fixture["bleu"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(bleu(*captions), fixture["bleu_exact"], rtol=0, atol=1e-12)


def test_cider_d_with_the_frequencies_of_another_set():
    fixture = golden("cider_d_given_frequencies")
    frequencies = DocumentFrequencies(fixture["documents"])
    assert frequencies.images == fixture["num_documents"]
    assert {" ".join(ngram): count for ngram, count in frequencies.counts.items()} == fixture["document_frequency"]
    scores = cider_d(fixture["hypotheses"], fixture["references"], frequencies)
    np.testing.assert_allclose(scores, fixture["cider_d_each"], rtol=0, atol=1e-8)


def test_recall_counts_as_beta_says():
    caption, references = ["a b c d"], [["a b", "x y z a b c"]]
    precision, recall = 3 / 4, 1.0  # of the second reference, and of the first
    for beta, expected in ((0.0, precision), (1e6, recall), (2.0, 5 * precision * recall / (recall + 4 * precision))):
        assert rouge_l(caption, references, beta) == pytest.approx(expected)


@pytest.mark.parametrize("sigma", [1.0, 3.0, 6.0])
def test_another_length_costs_as_sigma_says(sigma):
    captions = ["a b", "e"], [["a b c d"], ["f g"]]
    free, paid = (cider_d(*captions, sigma=each)[0] for each in (1e9, sigma))
    assert free > 0 and paid == pytest.approx(free * np.exp(-(2**2) / (2 * sigma**2)))


@given(SETS)
def test_bleu_is_sacrebleus(images):
    hypotheses, references = zip(*images, strict=True)
    streams = [
        [others[place] if place < len(others) else None for others in references]
        for place in range(max(map(len, references)))
    ]
    expected = [
        BLEU(max_ngram_order=n, tokenize="none", smooth_method="none", force=True).corpus_score(hypotheses, streams)
        for n in range(1, 5)
    ]
    np.testing.assert_allclose(bleu(hypotheses, references), [score.score / 100 for score in expected], atol=1e-12)


@given(SETS)
def test_parts_of_a_set_add_up_to_its_scores(images):
    hypotheses, references = zip(*images, strict=True)
    frequencies = DocumentFrequencies(references)
    alone = [([hypothesis], [others]) for hypothesis, others in images]
    assert np.concatenate([cider_d(*part, frequencies) for part in alone]).tolist() == (
        cider_d(hypotheses, references).tolist()
    )
    assert bleu_of(sum(bleu_statistics(*part)[0] for part in alone)).tolist() == bleu(hypotheses, references)


@given(SETS)
def test_scores_have_their_ranges(images):
    hypotheses, references = zip(*images, strict=True)
    for scores, most in (
        (rouge_l(hypotheses, references), 1),
        (cider_d(hypotheses, references), 10),
        (np.array(bleu(hypotheses, references)), 1),
    ):
        assert ((scores >= 0) & (scores <= most * (1 + 1e-9))).all()


def test_scores_are_those_of_pycocoevalcap():
    """Also where a fixture of its scores has no example; the package is 104 MB, so the tests do not install it."""
    Cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider
    Rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge
    words = np.random.default_rng(0)
    texts = [" ".join(words.choice(list("abcdefg"), words.integers(1, 12))) for _ in range(60)]
    hypotheses, references = texts[:12], [texts[12 + 4 * image : 16 + 4 * image] for image in range(12)]
    keyed = dict(enumerate(references)), {image: [text] for image, text in enumerate(hypotheses)}
    for scorer, scores in ((Cider(), cider_d(hypotheses, references)), (Rouge(), rouge_l(hypotheses, references))):
        np.testing.assert_allclose(scores, scorer.compute_score(*keyed)[1], rtol=0, atol=1e-8)

"""A training beside a plain loop, its figures beside figures counted by hand, and what it trains and leaves alone."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from fairseq_ext.training import settings
from fairseq_ext.training.errors import CheckpointError
from fairseq_ext.training.files import load_safely
from fairseq_ext.training.flags import Runs
from graph.label_graph import LabelGraph, label_graph_loss, text
from graph.label_graph import train as training
from graph.label_graph.classifier import Classifier
from graph.label_graph.corpus import prepare
from graph.label_graph.model import HierarchicalAttentionNetwork
from graph.label_graph.options import Options
from graph.label_graph.text import train_vectors

SIZES = {"embedding_dim": 6, "hidden_size": 6, "attention_size": 6, "batch_size": 8, "start_eval": 1}
WORDS = {"food": "soup bread meal", "staff": "waiter rude served", "place": "cosy room garden", "wine": "red cork dry"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Labels of unequal frequency that the words tell well in training, less well in validation, and badly in test."""
    folder, chance = tmp_path_factory.mktemp("data"), random.Random(5)
    for split, count, honest in (("train", 50, 0.95), ("valid", 30, 0.8), ("test", 30, 0.55)):
        lines = []
        for _ in range(count):
            labels = sorted({*chance.choices(list(WORDS), [8, 4, 2, 1], k=2)})
            noisy = [label if chance.random() < honest else chance.choice(list(WORDS)) for label in labels]
            lines.append("|".join(labels) + "\t" + " ".join(chance.choice(WORDS[label].split()) for label in noisy * 2))
        (folder / f"{split}.tsv").write_text("\n".join(lines))
    return folder


def options_of(data, **changes):
    return Options(**{"data": str(data), "embedding": "learned", **SIZES, "epochs": 3, "lr": 0.02, **changes})


def counted(probabilities, gold, threshold):
    """The four metrics and the F1 of each label, sample by sample."""
    rows = list(zip(probabilities.tolist(), gold.tolist(), strict=True))
    labels = range(gold.size(1))
    hits = [sum(p[j] > threshold and g[j] == 1 for p, g in rows) for j in labels]
    wrong = [sum((p[j] > threshold) != (g[j] == 1) for p, g in rows) for j in labels]
    f1 = [2 * hit / (2 * hit + miss) if hit + miss else 0.0 for hit, miss in zip(hits, wrong, strict=True)]
    metrics = {
        "one_error": sum(g[p.index(max(p))] == 0 for p, g in rows) / len(rows),
        "hamming_loss": sum(wrong) / gold.numel(),
        "macro_f1": sum(f1) / len(f1),
        "micro_f1": 2 * sum(hits) / (2 * sum(hits) + sum(wrong)),
    }
    return metrics, f1


@pytest.mark.parametrize(
    ("select", "threshold"),
    [("micro_f1", "0.4"), ("macro_f1", "tuned"), ("one_error", "tuned"), ("hamming_loss", "0.4")],
)
def test_the_figures_are_those_of_the_test_set_at_the_best_epoch(data, tmp_path, monkeypatch, select, threshold):
    options = options_of(data, epochs=9, select=select, threshold=threshold, lr=0.05)
    corpus, networks = prepare(options), []
    real = training.validate

    def validate(classifier, *arguments, **more):
        networks.append({name: value.clone() for name, value in classifier.network.state_dict().items()})
        return real(classifier, *arguments, **more)

    monkeypatch.setattr(training, "validate", validate)
    result = training.train(options, corpus, 1, tmp_path)

    classifier = Classifier.load(tmp_path / "model.pt")
    counts = {}
    for epoch, state in enumerate(networks, 1):
        classifier.network.load_state_dict(state)
        probabilities = {split: classifier.probabilities(corpus.texts[split]) for split in ("valid", "test")}
        cut = float(threshold) if threshold != "tuned" else best_cut(probabilities["valid"], corpus.gold["valid"])
        for split, part in probabilities.items():
            counts[split, epoch] = (*counted(part, corpus.gold[split], cut), cut)
    sign = 1 if select.endswith("f1") else -1
    valid = [sign * counts["valid", epoch][0][select] for epoch in range(1, 10)]
    best = valid.index(max(valid)) + 1
    places = (("valid", best), ("test", best), ("test", 9))
    figures = [counts[place][0][name] for place in places for name in ("micro_f1", "macro_f1")]
    assert best < 9 and len(set(figures)) == 6, "planted so that all differ"

    metrics, f1, cut = counts["test", best]
    assert {name: result[name] for name in metrics} == pytest.approx(metrics)
    assert list(result["f1_by_label"].values()) == pytest.approx(f1) and list(result["f1_by_label"]) == corpus.labels
    assert result["best_epoch"] == best and result[f"valid_{select}"] == pytest.approx(abs(valid[best - 1]))
    assert result["threshold"] == pytest.approx(cut)
    for entry in result["history"]:
        wanted = counts["valid", entry["epoch"]][0]
        assert {name: entry[name] for name in wanted} == pytest.approx(wanted)


def best_cut(probabilities, gold):
    """The middle of the first gap between two scores, from above, whose micro F1 is largest."""
    scores = sorted({*probabilities.flatten().double().tolist()}, reverse=True)
    cuts = [(high + low) / 2 for high, low in zip(scores, [*scores[1:], scores[-1] - 1.0], strict=True)]
    return max(cuts, key=lambda cut: counted(probabilities.double(), gold, cut)[0]["micro_f1"])


@pytest.mark.parametrize("arm", ["soft", "graph", "han"])
def test_a_training_is_that_of_a_plain_loop(data, tmp_path, arm):
    options = options_of(data, arm=arm, dropout=0.2, **({"temperature": 2.0} if arm == "soft" else {}))
    corpus = prepare(options)
    result = training.train(options, corpus, 7, tmp_path)

    torch.manual_seed(7)
    graph = None if arm == "han" else LabelGraph(4)
    network = HierarchicalAttentionNetwork(len(corpus.reader), 4, 6, 6, 6, dropout=0.2, label_graph=graph)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    for epoch in range(3):
        network.train()
        losses = []
        for batch in torch.randperm(50).split(8):
            logits, gold = network(corpus.texts["train"][batch]), corpus.gold["train"][batch]
            if arm == "soft":
                loss = label_graph_loss(logits, gold, graph.weight, temperature=2.0, soft_target_clip=True)
            else:
                loss = F.binary_cross_entropy_with_logits(logits, gold.float(), reduction="none").sum(1).mean()
            network.zero_grad()
            loss.backward()
            optimizer.step()
            losses += [loss.item()] * len(batch)
        assert result["history"][epoch]["loss"] == pytest.approx(sum(losses) / 50, rel=1e-5)
    trained = load_safely(tmp_path / "checkpoint.pt")["network"]
    for name, value in network.state_dict().items():
        torch.testing.assert_close(trained[name], value)


def test_every_seed_is_a_run_of_its_own(data, tmp_path):
    options = options_of(data, epochs=1)
    experiment = training.run(options, Runs(out=str(tmp_path), seed=4, runs=2))
    losses = {name: run["history"][0]["loss"] for name, run in experiment.runs.items()}
    assert list(losses) == ["seed4", "seed5"] and losses["seed4"] != losses["seed5"]
    again = training.run(options, Runs(out=str(tmp_path / "again"), seed=5))
    assert again.runs["seed5"]["history"][0]["loss"] == losses["seed5"]


def test_every_epoch_reads_all_samples_in_another_order(data, tmp_path, monkeypatch):
    options = options_of(data)
    corpus, orders = prepare(options), [[]]
    real = training.train_epoch

    def epoch(classifier, *arguments):
        hook = classifier.network.register_forward_pre_hook(lambda _, inputs: orders[-1].extend(inputs[0].tolist()))
        loss = real(classifier, *arguments)
        hook.remove()
        orders.append([])
        return loss

    monkeypatch.setattr(training, "train_epoch", epoch)
    training.train(options, corpus, 1, tmp_path)
    everything = sorted(corpus.texts["train"][torch.arange(50)].tolist())
    assert [sorted(order) for order in orders] == [everything, everything, everything, []]
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("embedding", ["word2vec", "word2vec-tuned", "learned"])
def test_word_vectors_are_constants_or_trained(data, tmp_path, embedding):
    options = options_of(data, embedding=embedding)
    corpus, vectors = prepare(options), {}
    for seed in (1, 2):
        training.train(options, corpus, seed, tmp_path / str(seed))
        vectors[seed] = load_safely(tmp_path / str(seed) / "checkpoint.pt")["network"]["embedding.weight"]
    assert (corpus.sentences is None) == (embedding == "learned")
    sentences = corpus.sentences or prepare(options_of(data, embedding="word2vec")).sentences
    pretrained = {seed: train_vectors(sentences, corpus.reader, 6, seed=seed) for seed in (1, 2)}
    assert not torch.equal(pretrained[1], pretrained[2])
    for seed in (1, 2):
        moved = (vectors[seed] - pretrained[seed]).abs()[2:].max()
        if embedding == "word2vec":
            assert moved == 0
        elif embedding == "word2vec-tuned":
            assert 0 < moved < 3 * 0.02 * 7 * 1.5  # from there, in 21 steps of Adam
        else:
            assert moved > 0.5
    assert (vectors[1][0] == 0).all()  # padding


def test_the_threshold_is_tuned_on_validation_alone(data, tmp_path):
    options = options_of(data, threshold="tuned")
    corpus = prepare(options)
    first = training.train(options, corpus, 1, tmp_path / "a")
    corpus.gold["test"] = ~corpus.gold["test"]
    second = training.train(options, corpus, 1, tmp_path / "b")
    assert first["threshold"] == second["threshold"] and first["micro_f1"] != second["micro_f1"]


def test_ids_and_labels_are_those_of_the_training_texts(data):
    corpus = prepare(options_of(data))
    assert corpus.labels == sorted(WORDS)
    assert corpus.gold["train"].shape == (50, 4) and corpus.texts["train"].words.max() == len(corpus.reader) - 1


def test_a_lost_model_is_missed_before_more_is_trained(data, tmp_path, monkeypatch):
    options, real = options_of(data), training.train_epoch
    corpus, epochs = prepare(options), []

    def epoch(*arguments):
        epochs.append(len(epochs))
        if len(epochs) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "train_epoch", epoch)
    with pytest.raises(KeyboardInterrupt):
        training.train(options, corpus, 1, tmp_path)
    (tmp_path / "model.pt").unlink()
    with pytest.raises(CheckpointError, match=r"model.pt: the best model is not there; delete .*checkpoint.pt too"):
        training.train(options, corpus, 1, tmp_path)
    assert len(epochs) == 2
    (tmp_path / "checkpoint.pt").unlink()
    assert training.train(options, corpus, 1, tmp_path)["best_epoch"]


STORED = {
    "a3f04370064cfad1": {"embedding": "learned"},
    "a7aa55a8698921941": {"embedding": "word2vec", "pieces": "sentences", "max_words": 3, "max_reviews": 2},
    "6ba3d8294f3b71b2": {"embedding": "word2vec", "min_count": 2, "transductive": True},
    "bc8d6067af541e5e": {"embedding": "learned", "unmasked_attention": True, "max_reviews": 3},
}


@pytest.mark.parametrize("stored", STORED)
def test_digests_of_stored_results_stay_what_they_are(tmp_path, monkeypatch, stored):
    monkeypatch.setattr(settings, "ENTRIES", 2)
    monkeypatch.setattr(text, "BLOCK", 2)
    train = "a|b\tRed soup. Cold red soup here\nb\t!!!\n\tcaf\u00e9 soup\n"
    splits = {"train": train, "valid": "a\tsoup red wine\n", "test": "b|c\tred. wine. soup\n"}
    for split, lines in splits.items():
        (tmp_path / f"{split}.tsv").write_text(lines, encoding="utf-8")
    options = Options(data=str(tmp_path), **STORED[stored])
    assert prepare(options).digest.startswith(stored)
    for split, relabelled in (("train", ("\tcaf", "a\tcaf")), ("valid", ("a\t", "b\t")), ("test", ("b|c", "a|c"))):
        for change in (("red", "wine"), relabelled):
            (tmp_path / f"{split}.tsv").write_text(splits[split].replace(*change), encoding="utf-8")
            assert not prepare(options).digest.startswith(stored)
        (tmp_path / f"{split}.tsv").write_text(splits[split], encoding="utf-8")


def test_words_come_from_the_reviews_that_are_read(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.tsv").write_text("food\tsoup here. bread there\n")
    words = {
        reviews: set(prepare(options_of(tmp_path, pieces="sentences", max_reviews=reviews)).reader.words)
        for reviews in (1, 2)
    }
    assert words == {1: {"soup", "here"}, 2: {"soup", "here", "bread", "there"}}

"""Training: several seeds, the best epoch by validation, resumed bit for bit after a kill."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq_ext.training.checkpoint import RandomState
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import output_folder
from fairseq_ext.training.flags import Runs
from fairseq_ext.training.loop import Training
from fairseq_ext.training.runs import Experiment, torch_device
from fairseq_ext.training.settings import Settings, digest
from graph.label_graph.classifier import Classifier, build_network, tokenized
from graph.label_graph.coverage import coverage, notes
from graph.label_graph.data import SPLITS, label_matrix, label_names, read_splits
from graph.label_graph.label_graph import label_graph_loss
from graph.label_graph.metrics import f1_by_label, multilabel_metrics, tune_threshold
from graph.label_graph.options import TUNED, Options
from graph.label_graph.text import Vocabulary, train_vectors

__all__ = ["Corpus", "prepare", "run", "score", "train", "validate"]

LOWER_IS_BETTER = ("one_error", "hamming_loss")


@dataclass(frozen=True)
class Corpus:
    """Ids and gold labels of every split, the texts that word vectors are trained on, and what of it all is read."""

    ids: dict[str, Tensor]
    gold: dict[str, Tensor]
    labels: list[str]
    vocabulary: Vocabulary
    sentences: list[list[str]]
    coverage: dict[str, dict[str, Any]]

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of everything that is trained and scored on."""
        tensors = (part[split] for split in SPLITS for part in (self.ids, self.gold))
        return digest(self.vocabulary.words, self.labels, self.sentences, *tensors)


def prepare(options: Options) -> Corpus:
    """Read, cut and number the data of ``options``.

    Raises:
        OptionError: no word in the training texts, or an option that has no effect on them.
        DataError: what :func:`~graph.label_graph.data.read_splits` refuses.
    """
    splits = read_splits(options.data)
    reviews = {split: tokenized(splits[split], options) for split in SPLITS}
    if all(len(sample) <= 1 for samples in reviews.values() for sample in samples) and not options.unmasked_attention:
        options.refuse_idle("where no sample has two reviews", "max_reviews")
    learned_from = SPLITS if options.transductive else ("train",)
    sentences = [
        review for split in learned_from for sample in reviews[split] for review in sample[: options.max_reviews]
    ]
    if not sentences:
        raise OptionError(f"--tokenizer {options.tokenizer} finds no word in {options.data}")
    vocabulary = Vocabulary.build(sentences, options.min_count)
    labels = label_names(splits["train"])
    return Corpus(
        {split: vocabulary.encode(reviews[split], options.max_reviews, options.max_words) for split in SPLITS},
        {split: label_matrix(splits[split], labels) for split in SPLITS},
        labels,
        vocabulary,
        sentences,
        {split: coverage(splits[split], reviews[split], labels, options) for split in SPLITS},
    )


def settings_of(options: Options, corpus: Corpus) -> Settings:
    """What results and checkpoints belong to: the options, and the data by its content."""
    return Settings.of(options, inputs={"data": corpus.digest})


def validate(classifier: Classifier, ids: Tensor, gold: Tensor, tune: bool = False) -> dict[str, float]:
    """Metrics at the classifier's threshold; with ``tune`` this is first set to the best for these samples."""
    probabilities = classifier.probabilities(ids)
    if tune:
        classifier.threshold = tune_threshold(probabilities, gold)
    return multilabel_metrics(probabilities, gold, classifier.threshold)


def score(classifier: Classifier, ids: Tensor, gold: Tensor) -> dict[str, Any]:
    """Metrics at the classifier's threshold, and ``f1_by_label``."""
    probabilities, threshold = classifier.probabilities(ids), classifier.threshold
    of_labels = f1_by_label(probabilities, gold, threshold)
    return {
        **multilabel_metrics(probabilities, gold, threshold),
        "f1_by_label": dict(zip(classifier.labels, of_labels, strict=True)),
    }


def _train_epoch(classifier: Classifier, optimizer: torch.optim.Optimizer, ids: Tensor, gold: Tensor) -> float:
    """One pass in random order; the mean loss."""
    network, options = classifier.network.train(), classifier.options
    device = network.output.weight.device
    graph = network.label_graph.weight if network.label_graph else torch.eye(gold.size(1), device=device)
    total = torch.zeros((), device=device)
    for batch in torch.randperm(len(ids)).split(options.batch_size):
        loss = label_graph_loss(
            network(ids[batch].to(device)),
            gold[batch].to(device),
            graph,
            ratio1=options.ratio1 if options.arm == "soft" else 0.0,
            ratio2=options.ratio2,
            temperature=options.temperature,
            stop_gradient=not options.no_stop_gradient,
            soft_target_clip=not options.no_soft_target_clip,
            loss=options.loss,
            log_end=options.log_end,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(batch)
    return float(total) / len(ids)


def train(
    options: Options, corpus: Corpus, seed: int, folder: str | Path, device: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Train with one seed; ``folder`` gets ``model.pt`` (of the best epoch) and ``checkpoint.pt`` (of the last).

    A ``checkpoint.pt`` that is there already is gone on from, and the end is that of an uninterrupted run, bit for
    bit on a CPU.

    Returns:
        Test metrics at the best epoch, that epoch, its validation metric, the threshold and where it comes from.

    Raises:
        OptionError: the checkpoint in ``folder`` was trained with other options or data.
        CheckpointError: a damaged checkpoint, or none of this training.
        InputError: the loss is not finite.
    """
    folder = output_folder(folder)
    torch.manual_seed(seed)
    vectors = None
    if options.embedding != "learned" and not (folder / "checkpoint.pt").exists():
        vectors = train_vectors(corpus.sentences, corpus.vocabulary, options.embedding_dim, seed=seed)
    network = build_network(options, len(corpus.vocabulary), len(corpus.labels), vectors).to(device)
    tuned = options.threshold == TUNED
    classifier = Classifier(
        network, corpus.vocabulary, corpus.labels, options, 0.0 if tuned else float(options.threshold)
    )
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=options.lr)

    training = Training(
        options.epochs,
        unit="epoch",
        select=options.select,
        lower_is_better=options.select in LOWER_IS_BETTER,
        validate_from=options.start_eval,
        save_every=1,
        folder=folder,
        settings=settings_of(options, corpus),
        parts={"network": network, "optimizer": optimizer, "random": RandomState()},
        best=folder / "model.pt",
        name=f"seed {seed}",
        advice="lower --lr or --ratio2, or leave out --no-soft-target-clip",
    )
    for _ in training:
        training.log(loss=_train_epoch(classifier, optimizer, corpus.ids["train"], corpus.gold["train"]))
        if training.validates and training.improved(
            validate(classifier, corpus.ids["valid"], corpus.gold["valid"], tune=tuned)
        ):
            classifier.save(folder / "model.pt")

    best = Classifier.load(folder / "model.pt")
    best.network.to(device)
    return {
        **score(best, corpus.ids["test"], corpus.gold["test"]),
        "threshold": best.threshold,
        "threshold_source": "tuned on validation" if tuned else "fixed",
        "coverage": corpus.coverage,
        **training.record(),
    }


def run(options: Options, runs: Runs) -> Experiment:
    """Train with every seed of ``runs`` that its folder does not hold yet."""
    device = torch_device(runs.device)
    corpus = prepare(options)  # bad data must not leave a results.json
    for line in notes(corpus.coverage, options):
        print(line, file=sys.stderr)
    experiment = Experiment(runs.out, settings_of(options, corpus), ("gensim", "scikit-learn"))
    return experiment.complete(
        {
            name: partial(train, options, corpus, seed, Path(runs.out) / name, device)
            for name, seed in runs.seeds.items()
        }
    )

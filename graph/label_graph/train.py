"""Training with several seeds: validation picks the best epoch, and a killed training is resumed bit for bit."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fairseq_ext.training.board import log_test
from fairseq_ext.training.checkpoint import CHECKPOINT, RandomState
from fairseq_ext.training.directions import lower_is_better
from fairseq_ext.training.files import output_folder
from fairseq_ext.training.flags import Runs
from fairseq_ext.training.loop import Training
from fairseq_ext.training.runs import Experiment, torch_device
from graph.label_graph.classifier import Classifier, build_network
from graph.label_graph.corpus import Corpus, prepare, settings_of
from graph.label_graph.coverage import notes
from graph.label_graph.encoder import Encoder
from graph.label_graph.epoch import ADVICE, score, train_epoch, validate
from graph.label_graph.options import TUNED, Options
from graph.label_graph.text import train_vectors

__all__ = ["run", "train"]


def train(
    options: Options, corpus: Corpus, seed: int, folder: str | Path, device: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Train with one seed; ``folder`` gets ``model.pt`` (of the best epoch) and ``checkpoint.pt`` (of the last).

    A training that was killed is resumed from its ``checkpoint.pt``, and ends as an uninterrupted one, bit for bit on a
    CPU.

    Returns:
        Test metrics at the best epoch, that epoch, its validation metric, the threshold and where it comes from, the
        coverage of the data, and the history.

    Raises:
        OptionError: the checkpoint in ``folder`` was trained with other options or data.
        CheckpointError: the checkpoint is damaged, or is not of such a training.
        InputError: loss or probabilities are not finite.
    """
    folder = output_folder(folder)
    torch.manual_seed(seed)
    reader = corpus.reader
    if isinstance(reader, Encoder):
        network = build_network(options, None, len(corpus.labels), state_size=reader.hidden_size)
    else:
        vectors = None
        if corpus.sentences is not None and not (folder / CHECKPOINT).exists():
            vectors = train_vectors(corpus.sentences, reader, options.embedding_dim, seed=seed)
        network = build_network(options, len(reader), len(corpus.labels), vectors)
    network = network.to(device)
    tuned = options.threshold == TUNED
    threshold = 0.0 if tuned else float(options.threshold)
    classifier = Classifier(network, reader, corpus.labels, options, threshold)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=options.lr)

    training = Training(
        options.epochs,
        unit="epoch",
        select=options.select,
        lower_is_better=bool(lower_is_better(options.select)),
        validate_from=options.start_eval,
        save_every=1,
        folder=folder,
        settings=settings_of(options, corpus),
        parts={"network": network, "optimizer": optimizer, "random": RandomState()},
        best=folder / "model.pt",
        name=f"seed {seed}",
        advice=ADVICE,
    )
    for _ in training:
        training.log(loss=train_epoch(classifier, optimizer, *corpus.split("train")))
        if training.validates and training.improved(validate(classifier, *corpus.split("valid"), tune=tuned)):
            classifier.save(folder / "model.pt")

    best = Classifier.load(folder / "model.pt")
    best.network.to(device)
    metrics = score(best, *corpus.split("test"))
    log_test(metrics, training.best_step)
    return {
        **metrics,
        "threshold": best.threshold,
        "threshold_source": "tuned on validation" if tuned else "fixed",
        "coverage": corpus.coverage,
        **training.record(),
    }


def run(options: Options, runs: Runs) -> Experiment:
    """Train with every seed of ``runs`` that its folder does not hold yet."""
    device = torch_device(runs.device)
    # Before the experiment: bad data must not leave a results.json.
    corpus = prepare(options, device, Path(options.cache or Path(runs.out) / "cache"))
    for line in notes(corpus.coverage, options):
        print(line, file=sys.stderr)
    packages = ("transformers" if options.encoder else "gensim", "scikit-learn")
    experiment = Experiment(runs.out, settings_of(options, corpus), packages, device=device)
    folder = Path(runs.out)
    return experiment.complete(
        {name: partial(train, options, corpus, seed, folder / name, device) for name, seed in runs.seeds.items()}
    )

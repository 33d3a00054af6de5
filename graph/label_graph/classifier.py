"""A trained network with everything it needs to read text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq_ext.training.errors import CheckpointError, OptionError, one_line
from fairseq_ext.training.files import load_safely, save_atomically
from fairseq_ext.training.modes import evaluating
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.progress import progress
from fairseq_ext.training.weights import check_finite
from graph.label_graph.data import Sample
from graph.label_graph.encoder import Encoder, States, fingerprint_of
from graph.label_graph.label_graph import LabelGraph
from graph.label_graph.model import HierarchicalAttentionNetwork
from graph.label_graph.options import Options, fixed_threshold
from graph.label_graph.text import Vocabulary, WordIds, split_text, tokenizer

__all__ = ["Classifier", "ModelFile", "Predictor", "build_network", "tokenized"]


def encoder_of(options: Options, fingerprint: str = "") -> Encoder | None:
    """The encoder that ``options`` name, or None where they name none.

    Args:
        options: name the encoder's folder, and how it is used.
        fingerprint: the fingerprint that the folder must have. Default: the one it has now.
    """
    if not options.encoder:
        return None
    settings = (options.num_layers, options.encoder_pooling, options.encoder_precision)
    return Encoder(options.encoder, fingerprint or fingerprint_of(options.encoder), *settings)


def tokenized(samples: Sequence[Sample], options: Options, encoder: Encoder | None = None) -> list[list[list[Any]]]:
    """The words of every review, or of every piece of a review; or, with an encoder, the token ids.

    Reviews and pieces without words are left out. Equal words are one object.
    """
    known: dict[Any, Any] = {}
    tokenize = encoder.tokenize if encoder else tokenizer(options.tokenizer)
    return [
        [
            [known.setdefault(word, word) for word in words]
            for review in sample.reviews
            for piece in split_text(review, options.pieces)
            if (words := tokenize(piece))
        ]
        for sample in progress(samples, "words", unit=" samples", leave=False)
    ]


def build_network(
    options: Options, num_words: int | None, num_labels: int, vectors: Tensor | None = None, state_size: int = 0
) -> HierarchicalAttentionNetwork:
    """The untrained network of ``options``.

    Args:
        options: of the training.
        num_words: size of the vocabulary; None for a network that reads vectors of ``state_size``.
        num_labels: number of labels.
        vectors: initial word vectors. Default: random ones.
        state_size: size of the vectors of an encoder. Default: 0, no encoder.
    """
    graph = None
    if options.arm != "han":
        graph = LabelGraph(num_labels, options.graph_position, options.graph_noise)
    return HierarchicalAttentionNetwork(
        num_words,
        num_labels,
        state_size or options.embedding_dim,
        options.hidden_size,
        options.attention_size,
        options.cell,
        options.dropout,
        options.word_dropout,
        masked=not options.unmasked_attention,
        vectors=vectors,
        # Constant even if the vectors come later from a file: the optimiser is made for the weights that are trained.
        freeze_vectors=options.embedding == "word2vec",
        label_graph=graph,
    )


@dataclass
class Classifier:
    """Turns texts into probabilities of labels.

    Args:
        network: turns word ids, or an encoder's states, into logits.
        reader: the vocabulary of the network, or the encoder before it.
        labels: the names of the network's outputs.
        options: options of the training, which also say how text is cut.
        threshold: a label is predicted where its probability is greater than this.

    Example:
        >>> classifier = Classifier.load("runs/label_graph/seed1/model.pt")
        >>> samples = read_file("album.json", need_labels=False)
        >>> classifier.probabilities(classifier.encode(samples))
    """

    network: HierarchicalAttentionNetwork
    reader: Vocabulary | Encoder
    labels: list[str]
    options: Options
    threshold: float

    def encode(self, samples: Sequence[Sample]) -> WordIds | States:
        """Word ids, or the encoder's states."""
        encoder = self.reader if isinstance(self.reader, Encoder) else None
        reviews = tokenized(samples, self.options, encoder)
        return self.reader.encode(reviews, self.options.max_reviews, self.options.max_words)

    @torch.no_grad()
    def probabilities(self, texts: WordIds | States) -> Tensor:
        """Probabilities ``(samples, labels)``, on the CPU, of texts that :meth:`encode` gave."""
        device = self.network.output.weight.device
        batches = torch.arange(len(texts)).split(self.options.batch_size)
        bar = progress(batches, "labels", unit=" batches", leave=False)
        with evaluating(self.network):
            return torch.cat([self.network(texts[batch].to(device)).sigmoid().cpu() for batch in bar])

    def save(self, path: str | Path) -> None:
        """Write one file that holds only plain data and tensors; of an encoder it holds the fingerprint."""
        of_reader = (
            {"encoder": [self.reader.fingerprint, self.network.embedding_dim]}
            if isinstance(self.reader, Encoder)
            else {"words": list(self.reader.words)}
        )
        state = of_reader | {
            "network": self.network.state_dict(),
            "labels": self.labels,
            "options": self.options.as_dict(),
            "threshold": self.threshold,
        }
        save_atomically(state, path)

    @classmethod
    def load(cls, path: str | Path) -> Classifier:
        """Read a file that :meth:`save` wrote.

        Raises:
            CheckpointError: no such file, a file of another kind, or weights that are not finite.
        """
        content = load_safely(path)
        state = content if isinstance(content, dict) else {}
        try:
            options, labels = Options(**state["options"]), list(state["labels"])
            fingerprint, size = state["encoder"] if options.encoder else ("", 0)
            encoder = encoder_of(options, fingerprint)
            vocabulary = Vocabulary(tuple(() if encoder else state["words"]))
            network = build_network(options, None if encoder else len(vocabulary), len(labels), state_size=size)
            network.load_state_dict(state["network"])
            classifier = cls(network, encoder or vocabulary, labels, options, float(state["threshold"]))
        except Exception as error:  # torn and foreign files raise many types
            raise CheckpointError(f"{path}: not a model of graph.label_graph ({one_line(error)})") from error
        check_finite(network.state_dict(), path)
        return classifier


@dataclass(frozen=True, kw_only=True)
class ModelFile(OptionSet):
    """The trained model."""

    model: str = option("runs/label_graph/seed1/model.pt", "file of the trained model")

    def load(self) -> Classifier:
        """The model, on the CPU."""
        return Classifier.load(self.model)


@dataclass(frozen=True, kw_only=True)
class Predictor(ModelFile):
    """The trained model, and when it predicts a label."""

    threshold: str = option("", "a label is predicted above this probability (default: that of the model)")
    encoder: str = option(
        "", "folder of the training's encoder, where it lies elsewhere now (default: that of the training)"
    )

    def load(self) -> Classifier:
        """The model, with ``threshold`` and with its encoder in the folder ``encoder`` where these are given.

        Raises:
            OptionError: the encoder's folder is not there, or the model has no encoder. A folder with another encoder
                is refused when it is read.
        """
        classifier = super().load()
        if isinstance(classifier.reader, Encoder):
            classifier.reader = replace(classifier.reader, folder=self.encoder or classifier.reader.folder)
            if not Path(classifier.reader.folder).is_dir():
                raise OptionError(
                    f"--encoder: {classifier.reader.folder} is not a folder; {self.model} reads the encoder of its "
                    "training, wherever it lies now"
                )
        else:
            self.refuse_idle(f"with {self.model}, which reads words", "encoder")
        if self.threshold:
            classifier.threshold = fixed_threshold(self.threshold)
        return classifier

"""The data of a training as numbers: word ids, and the labels of every split."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.options import SPLITS
from fairseq_ext.training.settings import Blocks, Settings, digest
from graph.label_graph.classifier import encoder_of, tokenized
from graph.label_graph.coverage import coverage
from graph.label_graph.data import label_matrix, label_names, read_splits
from graph.label_graph.encoder import Encoder, States
from graph.label_graph.options import Options
from graph.label_graph.text import BLOCK, Sentences, Vocabulary, WordIds

__all__ = ["Corpus", "prepare", "settings_of"]


@dataclass(frozen=True)
class Corpus:
    """The texts and gold labels of every split, the sentences that word vectors are trained on, and the coverage.

    ``texts`` are word ids, or an encoder's states; the ``reader`` made them. ``sentences`` are kept where word vectors
    are trained. ``coverage`` tells how much of a split is read (:func:`~graph.label_graph.coverage.coverage`), and
    ``digest`` is the SHA-256 of everything that a run is trained and scored on.
    """

    texts: dict[str, WordIds | States]
    gold: dict[str, Tensor]
    labels: list[str]
    reader: Vocabulary | Encoder
    sentences: Sentences | None
    coverage: dict[str, dict[str, Any]]
    digest: str

    def split(self, name: str) -> tuple[WordIds | States, Tensor]:
        """Texts and gold labels of one split."""
        return self.texts[name], self.gold[name]


def prepare(options: Options, device: str | torch.device = "cpu", cache: Path | None = None) -> Corpus:
    """Read, cut and number the data of ``options``.

    Args:
        options: of the training.
        device: where an encoder computes. Default: the CPU.
        cache: folder that keeps an encoder's states. Default: None, they are not kept.

    Raises:
        OptionError: the training texts have no word, or none that is frequent enough; or an option has no effect on
            them.
        DataError: :func:`~graph.label_graph.data.read_splits` refuses the data.
    """
    splits, encoder = read_splits(options.data), encoder_of(options)
    reviews = {split: tokenized(splits[split], options, encoder) for split in SPLITS}
    if all(len(sample) <= 1 for samples in reviews.values() for sample in samples) and not options.unmasked_attention:
        options.refuse_idle("where no sample has two reviews", "max_reviews")
    learned_from = SPLITS if options.transductive else ("train",)
    sentences = [
        review for split in learned_from for sample in reviews[split] for review in sample[: options.max_reviews]
    ]
    if not sentences:
        finder = "--encoder: its tokenizer" if encoder else f"--tokenizer {options.tokenizer}"
        raise OptionError(f"{finder} finds no word in {options.data}")
    sizes = options.max_reviews, options.max_words
    texts: dict[str, WordIds | States]
    reader: Vocabulary | Encoder
    if encoder:
        reader, sentences = encoder, []
        texts = {split: encoder.encode(reviews[split], *sizes, device, cache) for split in SPLITS}
    else:
        reader = vocabulary = Vocabulary.build(sentences, options.min_count)
        if not vocabulary.words:
            most = max(Counter(word for sentence in sentences for word in sentence).values())
            raise OptionError(
                f"--min-count {options.min_count}: no word of {options.data} is left; the most frequent occurs {most} "
                "times"
            )
        texts = {split: vocabulary.encode(reviews[split], *sizes) for split in SPLITS}
    labels = label_names(splits["train"])
    gold = {split: label_matrix(splits[split], labels) for split in SPLITS}
    words = reader.words if isinstance(reader, Vocabulary) else None
    contents = (part for split in SPLITS for part in (_content(texts[split]), _as_floats(gold[split])))
    return Corpus(
        texts,
        gold,
        labels,
        reader,
        Sentences(sentences, reader) if isinstance(reader, Vocabulary) and options.embedding != "learned" else None,
        {split: coverage(splits[split], reviews[split], labels, options) for split in SPLITS},
        digest(words, labels, sentences, *contents),
    )


def _content(texts: WordIds | States) -> Blocks | str:
    return texts.digest if isinstance(texts, States) else texts.blocks()


def _as_floats(gold: Tensor) -> Blocks:
    """Gold labels in the form whose digest is stored with results."""
    return Blocks(np.float32, tuple(gold.shape), (rows.numpy() for rows in gold.split(BLOCK)))


def settings_of(options: Options, corpus: Corpus) -> Settings:
    """The settings that results and checkpoints belong to: the options, and data and encoder by their content."""
    return Settings.of(options, inputs={"data": corpus.digest})

"""The data of a training as it is read: numbered, with the labels of every split."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.settings import Settings, digest
from graph.label_graph.classifier import tokenized
from graph.label_graph.coverage import coverage
from graph.label_graph.data import SPLITS, label_matrix, label_names, read_splits
from graph.label_graph.options import Options
from graph.label_graph.text import Vocabulary

__all__ = ["Corpus", "prepare", "settings_of"]


@dataclass(frozen=True)
class Corpus:
    """Ids and gold labels of every split, the texts that word vectors are trained on, and what of it all is read."""

    ids: dict[str, Tensor]
    gold: dict[str, Tensor]
    labels: list[str]
    vocabulary: Vocabulary
    sentences: list[list[str]]
    coverage: dict[str, dict[str, Any]]

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Ids and gold labels of one split."""
        return self.ids[name], self.gold[name]

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

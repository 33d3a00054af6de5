"""What is computed from the translations of a test set: BLEU by source length, and a test of differences."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sacrebleu.metrics import BLEU

from examples.translation.outputs import read_outputs
from fairseq_ext.training.files import read_lines, replacing

__all__ = [
    "Sampled",
    "bleu_by_length",
    "bootstrap",
    "compress",
    "published",
    "sampled",
    "sentence_statistics",
    "translations_of",
]

GROUPS = 5
"""Groups of source sentences by their lengths, each with as many sentences."""
SAMPLES = 1000


def compress(folder: Path, reference: Path) -> list[str]:
    """The translations in ``generate.txt``, which is replaced by ``translations.txt.gz``: one a line, in order."""
    log = folder / "generate.txt"
    translations = read_outputs(log, reference, "D").hypotheses
    with replacing(folder / "translations.txt.gz") as partial:
        partial.write_bytes(gzip.compress("".join(f"{line}\n" for line in translations).encode(), mtime=0))
    log.unlink()
    return translations


def translations_of(folder: Path) -> list[str]:
    """What :func:`compress` kept; none where nothing is."""
    file = folder / "translations.txt.gz"
    return _lines(file) if file.exists() else []


def published(file: Path, translations: Sequence[str], replace: bool = False) -> list[str]:
    """The translations of a run in a file beside the tables: written where some are given, or read.

    None where the file has those of another run, which stay there without ``replace``.
    """
    if translations and file.exists() and not replace and _lines(file) != [*translations]:
        return []
    if translations:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            partial.write_text("".join(f"{line}\n" for line in translations), encoding="utf-8")
    return _lines(file) if file.exists() else []


def _lines(file: Path) -> list[str]:
    return [line for line, _ in read_lines(file, keep_blank=True)]


def bleu_by_length(translations: Sequence[str], reference: Path, source: Path) -> list[tuple[float, int, float]]:
    """``(mean words of the source, sentences, BLEU)`` of the groups, from short sentences to long ones."""
    references, lengths = _lines(reference), np.array([len(line.split()) for line in _lines(source)])
    groups = np.array_split(np.argsort(lengths, kind="stable"), min(GROUPS, len(lengths)))
    bleu = BLEU()
    return [
        (
            float(lengths[group].mean()),
            len(group),
            bleu.corpus_score([translations[n] for n in group], [[references[n] for n in group]]).score,
        )
        for group in groups
    ]


def sentence_statistics(translations: Sequence[str], reference: Path) -> np.ndarray:
    """``(sentences, 10)``: matches and totals of the four orders, words of both sides; BLEU is made of their sums."""
    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(line, [other]) for line, other in zip(translations, _lines(reference), strict=True)]
    return np.array([[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores])


def _bleu(statistics: np.ndarray) -> float:
    counts, totals, (words, wanted) = (part.tolist() for part in np.split(statistics, [4, 8]))
    return BLEU.compute_bleu(counts, totals, words, wanted, smooth_method="exp").score


class Sampled(NamedTuple):
    """A difference of BLEU, its 95 % interval and its two-sided p when other test sentences are drawn."""

    mean: float
    low: float
    high: float
    p: float
    seeds: int


def bootstrap(
    baseline: Mapping[int, np.ndarray], system: Mapping[int, np.ndarray], samples: int = SAMPLES
) -> Sampled | None:
    r"""Paired bootstrap of BLEU (Koehn, Statistical Significance Tests for Machine Translation Evaluation, 2004).

    The seeds are pooled: a drawn sentence comes with its translations by all of them. sacreBLEU's ``--paired-bs`` would
    draw each translation by itself, as if those of a sentence by several seeds were independent, and so give too small
    a p. With :math:`\delta` the difference and :math:`\delta_b` that of a sample,
    :math:`p = (1 + |\{b : |\delta_b - \bar\delta| \ge |\delta|\}|) / (1 + samples)`.

    Args:
        baseline: of each seed the :func:`sentence_statistics`.
        system: likewise.
        samples: how many test sets are drawn.

    Returns:
        None where no seed has both.
    """
    seeds = sorted(baseline.keys() & system.keys())
    if not seeds:
        return None
    sides = [sum(statistics[seed] for seed in seeds) for statistics in (baseline, system)]
    count = len(sides[0])
    draws = np.random.default_rng(1).multinomial(count, np.full(count, 1 / count), size=samples)
    plain, other = ([_bleu(sums) for sums in draws @ side] for side in sides)
    difference = _bleu(sides[1].sum(0)) - _bleu(sides[0].sum(0))
    drawn = np.subtract(other, plain)
    extreme = np.abs(drawn - drawn.mean()) >= abs(difference)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Sampled(difference, float(low), float(high), float((1 + extreme.sum()) / (1 + samples)), len(seeds))


def sampled(statistics: Mapping[str, Mapping[int, np.ndarray]], baseline: str) -> dict[str, dict[str, float]]:
    """What :func:`bootstrap` says of each system against the baseline, from the statistics of each seed."""
    tests = {name: bootstrap(statistics.get(baseline, {}), own) for name, own in statistics.items() if name != baseline}
    return {name: test._asdict() for name, test in tests.items() if test}

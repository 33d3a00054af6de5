"""The parts of the COCO evaluation that are Java programs, through pycocoevalcap: its tokeniser, METEOR and SPICE."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fairseq_ext.training.errors import InputError, OptionError

__all__ = ["SCORERS", "tokenize"]

PACKAGE = "pycocoevalcap"
CORENLP = "spice/lib/stanford-corenlp-3.6.0.jar"


@contextlib.contextmanager
def _java(option: str) -> Iterator[Path]:
    """A context with the package's folder; what is absent, or fails within, ends in one line."""
    if not shutil.which("java"):
        raise OptionError(f"{option}: runs in Java, and there is no `java` on the PATH")
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise OptionError(f"{option}: {PACKAGE} is not installed: pip install --no-deps {PACKAGE}==1.2")
    try:
        yield Path(next(iter(spec.submodule_search_locations)))
    except InputError:  # a ValueError, too
        raise
    # The package asserts, and unpacks whatever Java answers; its temporary files lie in its own folder.
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError, AssertionError) as error:
        raise OptionError(
            f"{option}: {PACKAGE} failed: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error


def tokenize(captions: Sequence[str]) -> list[str]:
    """Java's tokens of all captions at once; :func:`fairseq_ext.captions.tokenizer.tokenize` is their Python form.

    Args:
        captions: as people or models wrote them.

    Raises:
        OptionError: Java or the package is absent, or fails.
    """
    with _java("--tokenizer ptb-java"):
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        # Java ends a line at signs that the package lets pass, and all later captions would shift by one.
        lines = {place: [{"caption": " ".join(caption.split())}] for place, caption in enumerate(captions)}
        tokenized = PTBTokenizer().tokenize(lines)
        return [tokenized[place][0] for place in range(len(captions))]


def _meteor(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    with _java("--metrics meteor"):
        from pycocoevalcap.meteor.meteor import Meteor

        return Meteor().compute_score(*_keyed(hypotheses, references))


def _spice(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    with _java("--metrics spice") as folder:
        if not (folder / CORENLP).is_file():  # the package would download it
            raise OptionError(f"--metrics spice: needs CoreNLP 3.6.0 as {folder / CORENLP}")
        from pycocoevalcap.spice.spice import Spice

        score, each = Spice().compute_score(*_keyed(hypotheses, references))
        return float(score), [float(np.nan_to_num(scores["All"]["f"])) for scores in each]


def _keyed(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    # "|||" parts the fields of METEOR's protocol.
    def clean(caption: str) -> str:
        return caption.replace("|||", "")

    return (
        {image: list(map(clean, others)) for image, others in enumerate(references)},
        {image: [clean(hypothesis)] for image, hypothesis in enumerate(hypotheses)},
    )


SCORERS: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], tuple[float, list[float]]]] = {
    "meteor": _meteor,
    "spice": _spice,
}
"""By name: of tokenised hypotheses and references the score of the set and that of each image."""

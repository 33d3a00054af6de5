"""A trained model as a function from text to text; ``fairseq_ext.Translator`` registers our models first."""

from __future__ import annotations

import itertools
import math
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from fairseq.data.data_utils import collate_tokens
from fairseq.utils import resolve_max_positions
from torch import Tensor

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.progress import warn
from fairseq_ext.training.runs import torch_device
from fairseq_ext.translate.loading import Loaded, load
from fairseq_ext.translate.long_lines import parts
from fairseq_ext.translate.options import AUTO, Decoding

__all__ = ["Hypothesis", "Translation", "Translator"]

LONG = {
    "skip": "skipped (--long truncate or split translates it)",
    "truncate": "cut (--long split translates all of it)",
    "split": "translated in parts",
}
# Text that was prepared with --bpe none was split by subword-nmt before.
JOINING = {"sentencepiece": "sentencepiece", "subword-nmt": "subword_nmt", "none": "subword_nmt"}


class Hypothesis(NamedTuple):
    """One translation of a line."""

    text: str
    """Subwords joined."""
    score: float
    """Sum of the token scores over (number of tokens) ** lenpen: what fairseq-generate prints in its ``H-`` lines."""
    tokens: list[str]
    """Subwords, the end of the sentence included."""
    token_scores: list[float]
    """Logarithm to base 2 of each token's probability."""
    alignment: list[tuple[int, int]] | None
    """Source and target token of each link, counted from 0; None where it was not asked for."""
    attention: Tensor | None = None
    """Weights that the alignment is the largest of, ``(T, S)``: of the last decoder layer, the mean of its heads. Rows
    are ``tokens``; columns are the source's subwords with the end of the sentence, of a line in parts that of each."""


class Translation(NamedTuple):
    """The result for one line."""

    hypotheses: list[Hypothesis]
    """Best first; empty for a blank line and for one that was skipped."""
    source_tokens: list[str]
    """The subwords that the model read, or would have read."""
    long: str
    """``"skip"``, ``"truncate"`` or ``"split"`` where the line was longer than the model reads, else empty."""
    cut: bool
    """Whether the translation is as long as ``max_len`` allows, so that its end is probably lost."""
    unknown: int
    """How many of ``source_tokens`` the model does not know."""

    @property
    def text(self) -> str:
        """The best translation; empty where there is none."""
        return self.hypotheses[0].text if self.hypotheses else ""


class Translator:
    """Translates text: cleans and splits it like the training text, searches with a beam, and joins the subwords.

    Example:
        >>> translator = Translator.from_pretrained("runs/quickstart/combined")
        >>> translator.translate(["3 hours ago"], beam=5)
        ['vor 3 Stunden']
    """

    def __init__(self, loaded: Loaded) -> None:
        self.models, self.task, self.preparation, self.files = loaded
        self.source, self.target = self.task.source_dictionary, self.task.target_dictionary
        self.device = next(self.models[0].parameters()).device
        limits = resolve_max_positions(self.task.max_positions(), *(model.max_positions() for model in self.models))
        self.max_source, self.max_target = limits
        self.left_pad_source = self.task.cfg.left_pad_source  # recurrent encoders read the padding, too
        self._encode = self.preparation.encoder()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        checkpoints: Sequence[str] = (),
        *,
        data: str | Path | None = None,
        device: str = AUTO,
        inference_dtype: str = AUTO,
    ) -> Self:
        """Load a model that ``fairseq-train`` has trained on a folder of ``examples.translation.prepare``.

        torch's safe loader reads the checkpoints: nothing in them is executed.

        Args:
            folder: folder of checkpoints, such as a ``--save-dir``.
            checkpoints: files in ``folder``, or paths relative to it; several are an ensemble. Default: the first of
                ``checkpoint_average.pt``, ``checkpoint_best.pt`` and ``checkpoint_last.pt`` that exists, or the only
                checkpoint.
            data: the folder that holds ``prepare.json``, the dictionaries and the subword model. Default: ``folder``
                if they are in it, else the folder that the checkpoint was trained on.
            device: ``"auto"`` is the GPU where there is one; ``"cpu"``, ``"cuda"``, ...
            inference_dtype: format of the weights of linear layers on a CPU, ``"float32"``, ``"bfloat16"`` or
                ``"int8"``. ``"auto"``: float32 for Transformers on a CPU, which changes rounding alone; other models
                stay as they were trained.

        Raises:
            InputError: a file or folder is missing, damaged, or does not fit the others.
        """
        checkpoints = (checkpoints,) if isinstance(checkpoints, str) else tuple(checkpoints)
        return cls(load(folder, checkpoints, data, torch_device(device), inference_dtype))

    def __str__(self) -> str:
        models = ", ".join(map(str, self.files[: len(self.models)]))
        languages = " to ".join((self.task.cfg.source_lang, self.task.cfg.target_lang))
        return f"{languages}: {models}, text as in {self.preparation.folder}"

    def translate(self, sentences: Sequence[str], *, beam: int = 5, **options: Any) -> list[str]:
        """The best translation of each sentence, in the order of the sentences; a blank one stays blank.

        A warning on stderr names sentences that were too long and translations that were cut.

        Args:
            sentences: raw text.
            beam: hypotheses of the search.
            **options: other options of :class:`~fairseq_ext.translate.options.Decoding`: ``lenpen``, ``max_len``,
                ``long``, ``batch_tokens``.

        Raises:
            OptionError: an option out of its range, or one sentence in place of a list.
        """
        translations = self.translations(sentences, Decoding(beam=beam, **options))
        for number, translation in enumerate(translations):
            for problem in self.problems(translation):
                warn(f"sentence {number}: {problem}")
        return [translation.text for translation in translations]

    def translations(
        self,
        sentences: Sequence[str],
        decoding: Decoding | None = None,
        *,
        alignment: bool = False,
        progress: Callable[[int], object] = lambda finished: None,
    ) -> list[Translation]:
        """The result for each sentence: all hypotheses that were asked for, with scores.

        Args:
            sentences: raw text.
            decoding: options of the search.
            alignment: whether hypotheses come with their attention, and with the alignment to the source that it gives.
            progress: called with the number of sentences that were finished since the last call.

        Raises:
            OptionError: one sentence in place of a list, or a beam larger than the vocabulary.
        """
        if isinstance(sentences, str):
            raise OptionError("translate takes a list of sentences, got one: [sentence]")
        decoding = decoding or Decoding()
        if decoding.beam >= len(self.target):
            raise OptionError(f"--beam {decoding.beam}: must be below the {len(self.target)} symbols of the model")
        sources = [self._encode(sentence).split() for sentence in sentences]
        pieces = [self._readable(source, decoding.long) for source in sources]
        progress(pieces.count([]))
        owners = [number for number, of_line in enumerate(pieces) for _ in of_line]
        tokens = [self._indices(piece) for of_line in pieces for piece in of_line]
        beams: list[list[dict[str, Any]]] = [[] for _ in tokens]
        left = Counter(owners)
        for batch in _batches([len(line) for line in tokens], decoding.batch_tokens):
            for index, beam in zip(batch, self._search([tokens[i] for i in batch], decoding, alignment), strict=True):
                beams[index] = beam
                left[owners[index]] -= 1
                progress(int(left[owners[index]] == 0))
        rest = iter(beams)
        return [
            self._translation(source, of_line, list(itertools.islice(rest, len(of_line))), decoding, alignment)
            for source, of_line in zip(sources, pieces, strict=True)
        ]

    def problems(self, translation: Translation) -> Iterator[str]:
        """Warnings for the reader of a translation: the line was too long, or the translation is cut."""
        if translation.long:
            length = f"{len(translation.source_tokens):,} subwords, the model reads {self.max_source - 1:,}"
            yield f"{length}: {LONG[translation.long]}"
        if translation.cut:
            yield "its translation is as long as --max-len allows, and probably cut there"

    def _readable(self, source: list[str], long: str) -> list[list[str]]:
        """The parts of a line that are translated; none for a blank line."""
        most = self.max_source - 1  # leaves room for the end of the sentence
        if not source or (len(source) > most and long == "skip"):
            return []
        if len(source) <= most:
            return [source]
        return [source[:most]] if long == "truncate" else parts(source, most, self.preparation.bpe)

    def _indices(self, symbols: list[str]) -> Tensor:
        return torch.tensor([*(self.source.index(symbol) for symbol in symbols), self.source.eos()])

    def _search(self, lines: list[Tensor], decoding: Decoding, alignment: bool) -> list[list[dict[str, Any]]]:
        """fairseq's best hypotheses of each line."""
        options = Namespace(
            beam=decoding.beam,
            lenpen=decoding.lenpen,
            max_len_b=decoding.max_len,
            print_alignment="hard" if alignment else None,
        )
        generator = self.task.build_generator(self.models, options)
        source = collate_tokens(lines, self.source.pad(), left_pad=self.left_pad_source).to(self.device)
        lengths = torch.tensor([len(line) for line in lines], device=self.device)
        net_input = {"src_tokens": source, "src_lengths": lengths}
        beams = self.task.inference_step(generator, self.models, {"net_input": net_input})
        return [beam[: decoding.nbest] for beam in beams]

    def _translation(
        self,
        source: list[str],
        pieces: list[list[str]],
        beams: list[list[dict[str, Any]]],
        decoding: Decoding,
        alignment: bool,
    ) -> Translation:
        most = min(decoding.max_len, self.max_target - 1)
        return Translation(
            hypotheses=[
                self._joined(pieces, ranked, decoding.lenpen, alignment) for ranked in zip(*beams, strict=False)
            ],
            source_tokens=source,
            long=decoding.long if len(source) >= self.max_source else "",
            cut=any(len(beam[0]["tokens"]) > most for beam in beams),
            unknown=sum(self.source.index(symbol) == self.source.unk() for symbol in source),
        )

    def _joined(
        self, pieces: list[list[str]], ranked: Sequence[dict[str, Any]], lenpen: float, alignment: bool
    ) -> Hypothesis:
        """One hypothesis for a line, joined from one for each of its parts; most lines have only one part."""
        joining = JOINING[self.preparation.bpe]
        texts = [self.target.string(part["tokens"].int().cpu(), joining) for part in ranked]
        tokens = [self.target[int(token)] for part in ranked for token in part["tokens"]]
        scores = [score for part in ranked for score in (part["positional_scores"] / math.log(2)).tolist()]
        links, source_start, target_start = [], 0, 0
        for piece, part in zip(pieces, ranked, strict=True):
            links += [(source_start + source, target_start + target) for source, target in part["alignment"]]
            source_start, target_start = source_start + len(piece), target_start + len(part["tokens"])
        return Hypothesis(
            text=" ".join(filter(None, texts)),
            score=sum(scores) / len(scores) ** lenpen,
            tokens=tokens,
            token_scores=scores,
            alignment=links if alignment else None,
            attention=torch.block_diag(*map(self._attention, pieces, ranked)) if alignment else None,
        )

    def _attention(self, piece: list[str], part: dict[str, Any]) -> Tensor:
        """The attention of a part, ``(T, S)``; fairseq returns it as ``(S, T)`` with the padding of the batch."""
        weights, length = part["attention"], len(piece) + 1
        return (weights[-length:] if self.left_pad_source else weights[:length]).T.float().cpu()


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Batches of line numbers, of similar lengths; the longest line comes first, which recurrent encoders need."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch

"""Generation: options that fail or do nothing, and sentences that are longer than the model reads."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fairseq_ext.compat.wrapping import wrapping
from fairseq_ext.training.errors import DataError
from fairseq_ext.training.files import read_lines

__all__ = [
    "replace_unknown_words",
    "search_diverse_beams",
    "source_positions",
    "spare_short_sentences",
    "task_options",
]

logger = logging.getLogger(__name__)

_NO_FILE = "@@ "
"""What fairseq's parser makes of ``--replace-unk`` without a file (it meant to say: none)."""


def search_diverse_beams() -> bool:
    """Let ``--diverse-beam-groups`` find a sentence by its row in the batch, not by its number in the data set."""
    from fairseq.search import DiverseBeamSearch

    @wrapping(DiverseBeamSearch, "step")
    def step(
        upstream: Any,
        self: Any,
        step: int,
        lprobs: Tensor,
        scores: Tensor | None,
        prev_output_tokens: Tensor | None = None,
        original_batch_idxs: Tensor | None = None,
    ) -> Any:
        if original_batch_idxs is not None:
            if step == 0:
                self.first_idxs = original_batch_idxs
            original_batch_idxs = (original_batch_idxs[:, None] == self.first_idxs).int().argmax(dim=1)
        return upstream(self, step, lprobs, scores, prev_output_tokens, original_batch_idxs)

    return True


def replace_unknown_words() -> bool:
    """``--replace-unk``, with a file and without: ask for the alignment that it needs, and read it as it is given.

    The alignment has all tokens, the text only those that are not stripped from it, such as the token of its language:
    fairseq counted both from the start.
    """
    from fairseq import utils
    from fairseq.data import data_utils
    from fairseq.tasks import FairseqTask

    @wrapping(FairseqTask, "build_generator")
    def build_generator(upstream: Any, self: Any, models: Any, args: Any, *rest: Any, **kwargs: Any) -> Any:
        if getattr(args, "replace_unk", None) is not None and not getattr(args, "print_alignment", None):
            args = copy.copy(args)  # the caller's own still says whether to print it
            args.print_alignment = "hard"
        return upstream(self, models, args, *rest, **kwargs)

    def load_align_dict(replace_unk: str | None) -> dict[str, str] | None:
        if replace_unk is None or replace_unk == _NO_FILE:
            return None if replace_unk is None else {}
        words = {}
        for line, origin in read_lines(replace_unk):
            try:
                source, target, *_ = line.split()
            except ValueError as error:
                raise DataError(f"{origin}: --replace-unk: a line is a source word and a target word") from error
            words[source] = target
        return words

    @wrapping(utils, "post_process_prediction")
    def post_process_prediction(
        upstream: Any,
        hypo_tokens: Tensor,
        src_str: str,
        alignment: Any,
        align_dict: dict[str, str] | None,
        tgt_dict: Any,
        remove_bpe: str | None = None,
        extra_symbols_to_ignore: Any = None,
    ) -> Any:
        as_it_is = hypo_tokens, src_str, alignment, None, tgt_dict, remove_bpe, extra_symbols_to_ignore
        if alignment is None or len(alignment) == 0:  # nothing to show, and no source to copy from
            return upstream(*as_it_is)
        ignored = {tgt_dict.bos(), tgt_dict.eos(), *(extra_symbols_to_ignore or ())}
        tokens = hypo_tokens.tolist()
        kept = [position for position, token in enumerate(tokens) if token not in ignored]
        shown = _without_ignored(alignment, kept, len(tokens))
        if align_dict is None:
            return *upstream(*as_it_is)[:2], shown
        # The alignment counts subwords, so they are joined afterwards.
        words, sources = [tgt_dict[tokens[position]] for position in kept], src_str.split()
        for number, position in enumerate(kept):
            if tokens[position] == tgt_dict.unk():
                try:
                    source = sources[_source_position(alignment[position])]
                except IndexError:  # aligned with the end of the sentence, or the sentence is empty
                    continue
                words[number] = align_dict.get(source, source)
                if source == tgt_dict.unk_string():
                    _say_once("--replace-unk: fairseq-interactive keeps no source text, so this <unk> stays")
        text = data_utils.post_process(" ".join(words), remove_bpe)
        return tgt_dict.encode_line(text, add_if_not_exist=True), text, shown

    utils.load_align_dict = load_align_dict
    return True


def _without_ignored(alignment: Any, kept: list[int], length: int) -> Any:
    """What ``A-`` shows: links to the words of ``H-`` instead of to all tokens; of ``soft`` the end has a row, too."""
    if isinstance(alignment[0], tuple):
        return [(alignment[position][0], number) for number, position in enumerate(kept)]
    return [row for position, row in enumerate(alignment) if position in kept or position == length - 1]


def _source_position(aligned: Any) -> int:
    """Of a pair (source, target) of ``--print-alignment hard``, or a row of probabilities of ``soft``."""
    if isinstance(aligned, tuple):
        return aligned[0]
    return max(range(len(aligned)), key=lambda source: float(aligned[source]))


_say_once = functools.cache(logger.warning)


def spare_short_sentences() -> bool:
    """Let ``fairseq-interactive`` skip a sentence that is longer than the model reads, or cut it, and say so.

    Without this, one such sentence ended the program and lost the whole buffer, and ``--truncate-source`` was ignored.
    For that, and for ``fairseq-generate --truncate-source``, a task now reads no more tokens than the loaded models do,
    since its own option is that of the training unless the command sets it.
    """
    from fairseq import checkpoint_utils, options
    from fairseq.tasks import FairseqTask

    @wrapping(checkpoint_utils, "load_model_ensemble_and_task")
    def load_model_ensemble_and_task(upstream: Any, *args: Any, **kwargs: Any) -> Any:
        models, cfg, task = upstream(*args, **kwargs)
        limits = [source_positions(each.max_positions()) for each in (task, *models)]
        least = min((limit for limit in limits if limit is not None), default=None)
        if least is not None and getattr(task_options(task), "max_source_positions", None) is not None:
            task_options(task).max_source_positions = least
        return models, cfg, task

    @wrapping(options, "add_interactive_args")
    def add_interactive_args(upstream: Any, parser: Any) -> Any:
        group = upstream(parser)
        parser.set_defaults(skip_invalid_size_inputs_valid_test=True)
        return group

    @wrapping(FairseqTask, "get_interactive_tokens_and_lengths")
    def get_interactive_tokens_and_lengths(
        upstream: Any, self: Any, lines: list[str], encode_fn: Any
    ) -> tuple[list[Tensor], Any]:
        tokens, lengths = upstream(self, lines, encode_fn)
        most = source_positions(self.max_positions())
        cut = getattr(task_options(self), "truncate_source", False)
        for number, line in enumerate(lines):
            if most and lengths[number] > most:
                what = "cut (--truncate-source)" if cut else "skipped (--truncate-source cuts it instead)"
                message = "a sentence of %d tokens, the model reads at most %d, is %s: %.60s ..."
                logger.warning(message, lengths[number], most, what, line)
                if cut:
                    tokens[number] = torch.cat([tokens[number][: most - 1], tokens[number][-1:]])
                    lengths[number] = most
        return tokens, lengths

    return True


def task_options(task: Any) -> Any:
    """The configuration of a task, which older ones call ``args``."""
    return task.cfg if getattr(task, "cfg", None) is not None else getattr(task, "args", None)


def source_positions(limits: Any) -> int | None:
    """The tokens of the source in what ``max_positions()`` gives: a number, a pair, or such for each language pair."""
    if isinstance(limits, Mapping):
        return min(filter(None, map(source_positions, limits.values())), default=None)
    return limits[0] if isinstance(limits, tuple | list) else limits

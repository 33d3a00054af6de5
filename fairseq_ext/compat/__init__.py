"""The repairs that fairseq 0.12.3 needs on current PyTorch and NumPy.

``import fairseq_ext`` applies them when fairseq is loaded; no installed file is edited. ``FAIRSEQ_EXT_NO_COMPAT=1``
turns them all off.

=================  ===================================================================================================
Repair             Without it
=================  ===================================================================================================
safe checkpoints   ``torch.load`` (safe by default since 2.6) refuses checkpoints of legacy architectures, checkpoints
                   made with ``--eval-bleu``, and the broadcast with which several processes resume. Only inert types
                   are allowed: a hostile pickle is still refused.
whole checkpoints  a full disk, or a kill, during the copy to ``checkpoint_last.pt`` destroys the previous one.
overrides          a mistyped name in ``--model-overrides`` is ignored, and so is an option that is newer than the
                   checkpoint.
last batch         up to ``required_batch_size_multiple - 1`` (7) sentences of every validation and test set are
                   dropped without a word, the longest ones; a set of fewer than 8 sentences yields no batch at all.
resumed batches    a training that is resumed after its first epoch puts other sentences into a batch than a training
                   that was never killed, and ends with other weights.
numpy names        ``--num-batch-buckets``, ``--sample-break-mode eos`` and others use names that NumPy 2 removed.
cached data        training on data of ``--dataset-impl cached`` ends in a ``KeyError``.
huffman data       data of ``HuffmanMMapIndexedDataset`` use a function that bitarray 3 removed.
dictionary flags   ``fairseq-preprocess --user-dir`` loses ``#fairseq:overwrite``: its dictionary cannot be loaded.
plain encoders     ``--bpe characters`` and ``--bpe bytes`` end in an error of hydra.
mbart task         ``--task translation_from_pretrained_bart`` finds no ``args``.
diverse beams      ``--diverse-beam-groups`` ends in an ``IndexError``, or mixes sentences up.
replace unk        ``--replace-unk`` ends in a ``TypeError`` at the first ``<unk>``; without a file, it looks for one.
short sentences    one sentence above the model's positions ends ``fairseq-interactive`` and loses its whole buffer.
damaged files      a truncated or refused checkpoint ends in a traceback that does not name the file.
damaged data       a dictionary or an index that cannot be read ends in a traceback that does not name the file; a
                   truncated ``.bin`` ends the training in the middle.
long sentences     sentences above the model's positions end ``fairseq-generate`` in a traceback.
whole shares       the empty batches that fill up the share of a process end ``fairseq-validate`` in a ``KeyError``;
                   with nothing to read ``fairseq-eval-lm`` prints a perplexity of 1 and ``fairseq-generate`` ends in a
                   traceback; one of several processes prints the score of its share as that of the whole set.
absent models      a checkpoint whose architecture is not loaded ends in ``KeyError: '_name'``.
single models      ``--task multilingual_translation`` with an architecture that has a dataclass ends in an error of
                   omegaconf.
bfloat16           ``--bf16`` and ``--memory-efficient-bf16`` on a command line are taken for ``--tpu``.
hydra refusals     with ``fairseq-hydra-train`` an option that is refused ends in a traceback and exit code 1.
hydra names        ``fairseq-hydra-train`` trains with its defaults where no file has the name of ``--config-name``.
whole help         ``--help`` shows no option of the architecture, task and criterion that were chosen, and no default.
refusals           what fairseq refuses (an option, a file, a folder) ends in a traceback and exit code 1, and the
                   option has to be guessed; ``LOGLEVEL=DEBUG`` shows the traceback beside the line.
captioned images   a task for text ends in a traceback if the data is images and captions.
refusals of all    one of several processes refuses the checkpoint that they resume, and the others end in a traceback.
resumed place      with another number of processes a training that is resumed within an epoch sees batches of it again.
resumed task       a training resumes with another dictionary of the same size, so that its words change; where the
                   file of ``--restore-file`` is not there, it starts from random weights without a word.
resumed model      a training with other model options resumes the one in its ``--save-dir``, and reports the old
                   model's results as its own.
resumed patience   a resumed training counts the validations of ``--patience`` from 0 again, and stops later.
resumed precision  a training with ``--bf16`` or ``--fp16`` resumes from weights that are rounded to half precision, and
                   ends with other weights than a training that was never killed.
resumed average    ``--ema-update-freq`` counts from 0 again in a resumed training; where the checkpoint has no average,
                   ``--store-ema`` ends in a ``KeyError``.
finished training  the same command line given again makes one more update after the last, and overwrites the
                   checkpoints.
inference dtype    there is no ``--inference-dtype``, with which decoding on a CPU takes less than half the time.
=================  ===================================================================================================
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from fairseq_ext.compat.checkpoints import allow_checkpoint_types, heed_overrides, write_whole_checkpoints
from fairseq_ext.compat.data import (
    configure_plain_encoders,
    keep_last_batch,
    keep_overwrite_flags,
    read_cached_data,
    read_huffman_data,
    restore_mbart_task,
    restore_numpy_names,
    resume_with_the_same_batches,
)
from fairseq_ext.compat.generation import replace_unknown_words, search_diverse_beams, spare_short_sentences
from fairseq_ext.compat.help import show_whole_help
from fairseq_ext.compat.inference import add_inference_dtype
from fairseq_ext.compat.messages import (
    name_absent_configurations,
    name_absent_models,
    name_captioned_images,
    name_damaged_checkpoints,
    name_damaged_data,
    name_long_sentences,
    name_single_models,
)
from fairseq_ext.compat.number_formats import keep_bfloat16_off_tpus
from fairseq_ext.compat.processes import read_whole_shares, refuse_in_all_processes, resume_with_other_processes
from fairseq_ext.compat.refusals import end_commands_in_one_line, end_hydra_in_one_line
from fairseq_ext.compat.resuming import (
    compare_resumed_models,
    compare_resumed_tasks,
    end_finished_trainings,
    keep_master_weights,
    keep_moving_average,
    keep_patience,
)

__all__ = ["BROKEN", "OFF_SWITCH", "allow_checkpoint_types", "apply", "patched"]

OFF_SWITCH = "FAIRSEQ_EXT_NO_COMPAT"

BROKEN = {
    "--replace-unk in fairseq-interactive": "it keeps no source text; use fairseq-generate with --dataset-impl raw",
    "--sacrebleu in fairseq-score": "it loads no plugin; use the command sacrebleu REFERENCES -i TRANSLATIONS",
    "score() of a translation's from_pretrained": "it has no targets; use fairseq-generate --score-reference",
    "--print-alignment soft in fairseq-interactive": "use fairseq-generate",
    "--dataset-impl huffman in fairseq-preprocess": "write the data with HuffmanMMapIndexedDatasetBuilder",
    "--task translation_from_pretrained_xlm": "its dictionary cannot be loaded",
    "--use-plasma-view": "pyarrow has no plasma any more",
    "--base-layers": "their compiled library does not fit this torch",
    "--no-mask-overlap (speech)": "it calls a method that NumPy's generators do not have",
}
"""What stays broken in fairseq on this stack, and the way out; ``fairseq-ext doctor`` prints it."""

logger = logging.getLogger(__name__)
_patched: list[str] = []


def apply() -> list[str]:
    """Apply every repair that is missing; calling it again changes nothing.

    Returns:
        The names of all repairs now in place, as :func:`patched`.
    """
    if os.environ.get(OFF_SWITCH, "0") not in ("", "0"):
        return patched()
    news = [name for name, repair in _REPAIRS.items() if name not in _patched and repair()]
    if news:
        _patched.extend(news)
        logger.info("fairseq repaired: %s (%s=1 turns this off)", ", ".join(news), OFF_SWITCH)
    return patched()


def patched() -> list[str]:
    """The names of the repairs in place in this process."""
    return list(_patched)


_REPAIRS: dict[str, Callable[[], bool]] = {
    "safe checkpoints": allow_checkpoint_types,
    "whole checkpoints": write_whole_checkpoints,
    "overrides": heed_overrides,
    "last batch": keep_last_batch,
    "resumed batches": resume_with_the_same_batches,
    "numpy names": restore_numpy_names,
    "cached data": read_cached_data,
    "huffman data": read_huffman_data,
    "dictionary flags": keep_overwrite_flags,
    "plain encoders": configure_plain_encoders,
    "mbart task": restore_mbart_task,
    "diverse beams": search_diverse_beams,
    "replace unk": replace_unknown_words,
    "short sentences": spare_short_sentences,
    "damaged files": name_damaged_checkpoints,
    "damaged data": name_damaged_data,
    "long sentences": name_long_sentences,
    "whole shares": read_whole_shares,
    "absent models": name_absent_models,
    "single models": name_single_models,
    "bfloat16": keep_bfloat16_off_tpus,
    "hydra refusals": end_hydra_in_one_line,
    "hydra names": name_absent_configurations,  # after the refusals, which end its own in one line
    "whole help": show_whole_help,
    "refusals": end_commands_in_one_line,
    "captioned images": name_captioned_images,
    "refusals of all": refuse_in_all_processes,  # before the others, which look at a file as it is read
    "resumed place": resume_with_other_processes,
    "resumed task": compare_resumed_tasks,
    "resumed model": compare_resumed_models,
    "resumed patience": keep_patience,
    "resumed precision": keep_master_weights,
    "resumed average": keep_moving_average,
    "finished training": end_finished_trainings,
    "inference dtype": add_inference_dtype,
}

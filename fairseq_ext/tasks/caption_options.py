"""The options of ``--task captioning``, and which of them and of fairseq's exclude each other."""

# No `from __future__ import annotations` here: fairseq reads the field types of the dataclass.
import json
from dataclasses import dataclass
from typing import Any, Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.configs import GenerationConfig
from omegaconf import II, MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fairseq_ext.captions.store import Preparation
from fairseq_ext.tasks.caption_scores import SCORES
from fairseq_ext.training.errors import OptionError, choose, first_line
from fairseq_ext.training.options import check_fields, option

__all__ = ["BEAM", "MAX_LEN", "CaptioningConfig", "check_options", "search_config"]

BEAM, MAX_LEN = 3, 20
SEARCH = (
    *("beam", "max_len_b", "min_len", "lenpen", "unnormalized", "unkpen", "temperature", "no_repeat_ngram_size"),
    *("sampling", "sampling_topk", "sampling_topp", "diverse_beam_groups", "diverse_beam_strength", "diversity_rate"),
)
"""The options of fairseq's generation that decide which captions a search finds."""


@dataclass
class CaptioningConfig(FairseqDataclass):
    """The options of the task. None of them decides the shape of a parameter: ``captioning.json`` does."""

    data: str = option(MISSING, "folder that `fairseq-ext captions prepare` has made")
    max_source_positions: int = option(
        1024,
        "most regions, or cells of a grid, of an image; a folder with more is refused (our choice: bottom-up features "
        "have at most 100, a grid of 14 x 14 has 196)",
        least=1,
    )
    max_target_positions: int = option(
        64, "most tokens of a caption, its end among them; longer ones are cut (our choice)", least=2
    )
    eval_captions: bool = option(False, "generate at validation, and log cider and bleu4 against all references")
    eval_captions_args: str = option(
        "{}",
        f'search at validation, as JSON over {{"beam": {BEAM}, "max_len_b": {MAX_LEN}}}; also {", ".join(SEARCH[2:])}',
        idle={"eval_captions": (False,)},
    )
    eval_captions_print_samples: bool = option(
        False, "log a caption of each validation batch, and its references", idle={"eval_captions": (False,)}
    )
    train_subset: str = II("dataset.train_subset")
    valid_subset: str = II("dataset.valid_subset")
    disable_validation: bool = II("dataset.disable_validation")
    dataset_impl: Optional[str] = II("dataset.dataset_impl")  # noqa: UP045, fairseq reads no other spelling
    required_seq_len_multiple: int = II("dataset.required_seq_len_multiple")
    max_valid_steps: Optional[int] = II("dataset.max_valid_steps")  # noqa: UP045
    post_process: Optional[str] = II("common_eval.post_process")  # noqa: UP045
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")


def check_options(cfg: Any, preparation: Preparation) -> Any:
    """Refuses options of the task, and those of fairseq beside it.

    Returns:
        The options of the search of ``--eval-captions``.
    """
    check_fields(cfg, CaptioningConfig)
    if preparation.max_regions > cfg.max_source_positions:
        most = f"{cfg.data} has images of {preparation.max_regions} regions"
        raise OptionError(f"--max-source-positions {cfg.max_source_positions}: {most}")
    if cfg.dataset_impl not in (None, "mmap"):
        raise OptionError(f"--dataset-impl {cfg.dataset_impl}: captions are mapped, leave it out or give mmap")
    if cfg.required_seq_len_multiple != 1:
        raise OptionError(f"--required-seq-len-multiple {cfg.required_seq_len_multiple}: has no effect on captions")
    if cfg.eval_captions and cfg.disable_validation:
        raise OptionError("--eval-captions: has no effect with --disable-validation")
    if cfg.eval_captions and cfg.max_valid_steps is not None:
        raise OptionError(f"--eval-captions: scores are of all images, --max-valid-steps {cfg.max_valid_steps} of some")
    if cfg.post_process and preparation.tokenizer == "word":
        raise OptionError(f"--post-process {cfg.post_process}: the captions are of words, there are no pieces to join")
    if cfg.eval_captions and cfg.train_subset in cfg.valid_subset.split(","):
        raise OptionError(
            f"--valid-subset {cfg.valid_subset}: --eval-captions captions none of the images that are trained on "
            f"({cfg.train_subset}), whose scores would be 0; leave that set out, or --eval-captions"
        )
    if cfg.best_checkpoint_metric in SCORES:
        metric = f"--best-checkpoint-metric {cfg.best_checkpoint_metric}"
        if not cfg.eval_captions:
            raise OptionError(f"{metric}: needs --eval-captions")
        if not cfg.maximize_best_checkpoint_metric:
            raise OptionError(f"{metric}: needs --maximize-best-checkpoint-metric, or the worst would be kept")
    return _search(f"--eval-captions-args {cfg.eval_captions_args}", cfg.eval_captions_args)


def _search(option: str, text: str) -> Any:
    try:
        given = json.loads(text)
        if not isinstance(given, dict):
            raise ValueError('must be a mapping like {"beam": 3}')
        for name in given:
            choose(option, name, SEARCH)
        search = search_config(**given)
        if not 1 <= search.min_len <= search.max_len_b or search.beam < 1:
            raise ValueError("beam and min_len must be at least 1, and max_len_b at least min_len")
    except OptionError:
        raise
    except (ValueError, OmegaConfBaseException) as error:
        raise OptionError(f"{option}: {first_line(error)}") from error
    return search


def search_config(**given: Any) -> Any:
    """fairseq's options of generation, with the defaults for captions.

    Args:
        **given: options that differ from these defaults.
    """
    return OmegaConf.merge(OmegaConf.structured(GenerationConfig), {"beam": BEAM, "max_len_b": MAX_LEN, **given})

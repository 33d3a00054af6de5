"""``--task captioning``: captions of images that ``fairseq-ext captions prepare`` has prepared."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairseq.data import Dictionary
from fairseq.logging import metrics
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import FairseqTask, register_task
from omegaconf import OmegaConf

from fairseq_ext.captions.checksums import split_checksums
from fairseq_ext.captions.generated import joined
from fairseq_ext.captions.store import Preparation, Split
from fairseq_ext.regions.region_files import category_names
from fairseq_ext.tasks.caption_dataset import CaptionDataset
from fairseq_ext.tasks.caption_options import BEAM, MAX_LEN, CaptioningConfig, check_options
from fairseq_ext.tasks.caption_scorer import HOW_TO_SCORE
from fairseq_ext.tasks.caption_scores import SCORES, SUMS, ReferenceScores
from fairseq_ext.tasks.caption_state import compare_images, compare_states
from fairseq_ext.training.errors import DataError, OptionError, choose
from fairseq_ext.training.files import load_safely
from fairseq_ext.training.options import SPLITS, flag

__all__ = ["CaptioningTask", "Pieces"]

logger = logging.getLogger(__name__)

IDLE_GENERATION = {
    "print_alignment": "it reads words alone; `fairseq-ext captions generate --json` has the attention",
    "constraints": "it reads none from prepared captions",
    "match_source_len": "a caption is not as long as its image has regions",
    "max_len_a": "a caption is not as long as its image has regions",
    "print_step": "it counts the steps of models that do not write word by word",
    "retain_iter_history": "it keeps the steps of models that do not write word by word",
    "replace_unk": "an image has no words",
}


@register_task("captioning", dataclass=CaptioningConfig)
class CaptioningTask(FairseqTask):
    """Captions of regions, of the cells of a grid, or of boxes with classes.

    Training has a sample for each caption, validation and test one for each image. ``--eval-captions`` generates at
    validation and logs ``cider`` (CIDEr-D) and ``bleu4``, times 100, against all references of an image: choose
    checkpoints with ``--best-checkpoint-metric cider --maximize-best-checkpoint-metric``.

    The folder decides the shapes of parameters, because fairseq-generate builds the task from its own command line;
    checkpoints keep the same description, and are refused beside a folder that differs.

    Args:
        cfg: the options.
        preparation: preparation of the folder.
        dictionary: dictionary of the captions.
        categories: names of the classes of boxes.
        images: a checksum of each split, if there is a folder.

    Raises:
        OptionError: options that are refused, or would do nothing.
    """

    cfg: CaptioningConfig

    def __init__(
        self,
        cfg: Any,
        preparation: Preparation,
        dictionary: Dictionary,
        categories: list[str],
        images: dict[str, str] | None = None,
    ) -> None:
        super().__init__(cfg)
        self.preparation, self.dictionary, self.categories = preparation, dictionary, categories
        self.search = check_options(cfg, preparation)
        words = list(dictionary.symbols)
        self.state.merge_state_dict(
            {"preparation": asdict(preparation), "words": words, "categories": categories, "images": images or {}}
        )
        self._references: dict[str, ReferenceScores] = {}

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """Add the options of the task, and give fairseq's options of generation the defaults for captions."""
        super().add_args(parser)
        ours = {"beam": BEAM, "max_len_b": MAX_LEN, "scoring": "captions"}
        if {"path", *ours} <= {action.dest for action in parser._actions}:
            parser.set_defaults(**ours)

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> CaptioningTask:
        """The task of a prepared folder.

        Raises:
            DataError: no such folder, or a damaged one.
        """
        preparation = Preparation.load(cfg.data)
        dictionary = cls.load_dictionary(str(Path(cfg.data, "dict.txt")))
        categories = category_names(Path(cfg.data)) or []
        logger.info("dictionary: %d types", len(dictionary))
        return cls(cfg, preparation, dictionary, categories, split_checksums(Path(cfg.data)))

    @classmethod
    def of_checkpoint(cls, cfg: Any, state: dict[str, Any]) -> CaptioningTask:
        """The task of a trained model, without the folder that it was trained on; it has no split to load.

        Args:
            cfg: the options.
            state: the :meth:`state_dict` of the training.
        """
        preparation = Preparation(**{**state["preparation"], "grid": tuple(state["preparation"]["grid"])})
        dictionary = Dictionary()
        for word in state["words"][dictionary.nspecial :]:
            dictionary.add_symbol(word)
        return cls(cfg, preparation, dictionary, state["categories"])

    @property
    def source_dictionary(self) -> None:
        """None: the source is images."""

    @property
    def target_dictionary(self) -> Dictionary:
        """The dictionary of the captions."""
        return self.dictionary

    def max_positions(self) -> tuple[int, int]:
        """Regions of an image, tokens of a caption."""
        return self.cfg.max_source_positions, self.cfg.max_target_positions

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, task_cfg: Any = None, **kwargs: Any
    ) -> None:
        """Load a split: to train on, caption by caption; other splits, and any for a trained model, image by image."""
        folder = Path(self.cfg.data)
        choose(f"{folder}: split", split, SPLITS)
        training = split == self.cfg.train_subset and task_cfg is None
        longest = min(self.cfg.max_target_positions, getattr(task_cfg, "max_target_positions", 1 << 30))
        dataset = CaptionDataset(Split(folder, split, self.preparation), self.dictionary, longest, training)
        logger.info(
            *("%s: %d samples of %d images, %d captions cut to %d tokens", split, len(dataset), len(dataset.split)),
            *(dataset.num_cut, longest),
        )
        self.datasets[split] = dataset

    def get_batch_iterator(self, dataset: CaptionDataset, *args: Any, **kwargs: Any) -> Any:
        """As fairseq's.

        Raises:
            DataError: images to validate or test on that fit into no batch.
        """
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        if not dataset.training:
            count = sum(map(len, iterator.frozen_batches))
            if count != len(dataset):
                raise DataError(f"{dataset.split.name}: only {count} of {len(dataset)} images are in a batch")
            logger.info("%s: %d of %d images in %d batches", dataset.split.name, count, count, len(iterator))
        return iterator

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """A model that reads images.

        Raises:
            OptionError: an architecture for text.
        """
        arch = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
        home = getattr(ARCH_MODEL_REGISTRY.get(arch), "__module__", "")
        if home.startswith(("fairseq.", "fairseq_ext.models.")) and not home.endswith(".captioning"):
            raise OptionError(f"--arch {arch}: reads text; --task captioning needs --arch captioning_transformer_ext")
        model = super().build_model(cfg, from_checkpoint)
        if self.cfg.eval_captions:
            self.sequence_generator = self.build_generator([model], self.search)
        return model

    def build_generator(self, models: Any, args: Any, *rest: Any, **kwargs: Any) -> Any:
        """As fairseq's.

        Raises:
            OptionError: an option that would do nothing, or not be followed.
        """
        for name, reason in IDLE_GENERATION.items():
            if getattr(args, name, None):
                raise OptionError(f"{flag(name)}: not for captions, {reason}")
        most = min(model.max_decoder_positions() for model in models) - 1
        length = getattr(args, "max_len_b", MAX_LEN)
        if length > most and length != MAX_LEN:
            raise OptionError(f"--max-len-b {length}: the model writes at most {most} tokens (--max-target-positions)")
        if not 1 <= getattr(args, "min_len", 1) <= length or getattr(args, "beam", BEAM) < 1:
            raise OptionError(
                f"--beam {args.beam} and --min-len {args.min_len} must be at least 1, and --max-len-b {length} at "
                "least --min-len"
            )
        root = args._get_root() if OmegaConf.is_config(args) else {}
        scoring = (root.get("scoring") or {}).get("_name", "captions")
        if scoring != "captions":
            logger.warning(
                "--scoring %s: has one reference an image, and no score of captions; %s", scoring, HOW_TO_SCORE
            )
        try:
            return super().build_generator(models, args, *rest, **kwargs)
        except (AssertionError, ValueError) as error:  # for options that exclude each other
            raise OptionError(" ".join(str(error).split())) from error

    def build_bpe(self, args: Any) -> Any:
        """The object that joins pieces to words, if the captions are made of pieces.

        Raises:
            OptionError: another ``--bpe`` is asked for.
        """
        if name := getattr(args, "_name", None):
            raise OptionError(f"--bpe {name}: not for captions, the folder says what they are made of")
        return None if self.preparation.tokenizer == "word" else Pieces()

    def text(self, tokens: Any) -> str:
        """The caption that tokens spell."""
        return joined(self.dictionary.string(tokens.int().cpu()).split())

    def valid_step(self, sample: Any, model: Any, criterion: Any) -> Any:
        """As fairseq's; with ``--eval-captions`` it adds the sums that scores are made of."""
        loss, sample_size, log = super().valid_step(sample, model, criterion)
        if self.cfg.eval_captions:
            log.update(self._sums(sample, model))
        return loss, sample_size, log

    def _sums(self, sample: Any, model: Any) -> dict[str, float]:
        dataset = self.datasets[sample["split"]]
        if dataset.training:  # the stand-in of a process that has no batch left: ignored, under the same names
            return dict.fromkeys(SUMS, 0.0)
        if dataset.split.name not in self._references:
            self._references[dataset.split.name] = ReferenceScores(dataset.split.references)
        searched = self.inference_step(self.sequence_generator, [model], sample)
        hypotheses = [self.text(best["tokens"]) for best, *_ in searched]
        images = sample["id"].tolist()
        if self.cfg.eval_captions_print_samples:
            logger.info("example hypothesis: %s", hypotheses[0])
            logger.info("example references: %s", " | ".join(dataset.split.references[images[0]]))
        return self._references[dataset.split.name].sums(images, hypotheses)

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """As fairseq's, with the scores."""
        super().reduce_metrics(logging_outputs, criterion)
        if not any(SUMS[0] in log for log in logging_outputs):
            return
        for name in SUMS:
            metrics.log_scalar(name, float(sum(log.get(name, 0) for log in logging_outputs)))
        for name, score in SCORES.items():
            # metrics calls it later, with the sums over all batches
            metrics.log_derived(name, lambda meters, score=score: round(score({k: meters[k].sum for k in SUMS}), 2))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the folder with the one that a checkpoint was trained on.

        Raises:
            CheckpointError: the two differ.
        """
        compare_states(self.state_dict(), state_dict, self.cfg.data, "the checkpoint")

    def check_checkpoint(self, path: str, resumes: bool) -> None:
        """:meth:`load_state_dict` before a training resumes, when fairseq does not call it.

        Args:
            path: path of the checkpoint.
            resumes: whether the training goes on with its own images; else it may have others.

        Raises:
            CheckpointError: the folder differs, or has other images to train on or to choose checkpoints by.
        """
        own, state = self.state_dict(), load_safely(path).get("task_state") or {}
        compare_states(own, state, self.cfg.data, path)
        if resumes:
            compare_images(own, state, [self.cfg.train_subset, *self.cfg.valid_subset.split(",")], self.cfg.data, path)

    def get_interactive_tokens_and_lengths(self, lines: Any, encode_fn: Any) -> Any:
        """Refused: ``fairseq-interactive`` reads text."""
        raise OptionError(
            "--task captioning: fairseq-interactive reads text; `fairseq-ext captions generate MODEL FOLDER` captions "
            "the images of a folder"
        )

    def eval_lm_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: ``fairseq-eval-lm`` reads text."""
        raise OptionError(
            "--task captioning: fairseq-eval-lm reads text; fairseq-validate gives the loss of captions, "
            "`fairseq-ext captions score` their scores"
        )


class Pieces:
    """Joins SentencePiece's pieces to words, in place of a ``--bpe`` of fairseq."""

    @staticmethod
    def decode(text: str) -> str:
        """The words; a text whose pieces ``--post-process`` has joined stays as it is."""
        return joined(text.split())

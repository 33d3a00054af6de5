"""Every option of a training run; the command line is made from this class."""

from __future__ import annotations

import argparse
import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, get_type_hints

from fairseq_ext.errors import OptionError, choose

__all__ = ["MIRRORS", "SCRATCH", "Options", "add_options", "flag", "parsed_options"]

SCRATCH = "scratch"
MIRRORS = ("singular", "distributed")
KINDS = (*MIRRORS, "none")
PSEUDO_NORMS = ("softmax", "renorm", "softmax_scores")
SCHEDULES = ("exp", "linear", "log", "const")
SCALES = ("mean", "sum")
SOURCES = ("sampled", "in-batch")
PRECISIONS = ("no", "bf16", "fp16")
METRICS = ("rsum", "ir_r1", "ir_r5", "ir_r10", "tr_r1", "tr_r5", "tr_r10")
FRACTIONS = ("dropout", "margin")


def _option(default: Any, help: str, choices: tuple[str, ...] | None = None, least: float | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices, "least": least})


@dataclass(frozen=True)
class Options:
    """Settings of :func:`vision_language.iais.train.train`; the paper's values stand in the help of each.

    Raises:
        OptionError: a value that is not allowed.
    """

    data: str = field(metadata={"help": "folder with train, valid and test in the region format"})
    encoder: str = _option(
        SCRATCH, f"folder of a Hugging Face BERT encoder with its tokenizer, or {SCRATCH} (paper: UNITER's, cased)"
    )
    num_layers: int = _option(
        0, "layers kept or made; 0: all of the encoder's, 2 from scratch (paper: 12, 24)", least=0
    )
    hidden_size: int = _option(128, "of an encoder from scratch (paper: 768, 1024)", least=1)
    num_heads: int = _option(4, "of an encoder from scratch (paper: 12, 16)", least=1)
    intermediate_size: int = _option(512, "of an encoder from scratch (paper: 3072, 4096)", least=1)
    vocab_size: int = _option(5000, "most entries of the vocabulary of an encoder from scratch (paper: 28996)", least=1)
    dropout: float = _option(0.1, "everywhere in the model (paper: 0.1)", least=0)
    max_text_length: int = _option(60, "word pieces of a caption that are read (paper: 60)", least=3)
    max_regions: int = _option(100, "regions of an image that are read (paper: 100)", least=1)

    iais: str = _option("singular", "alignment loss of the matched pairs", KINDS)
    iais_weight: float = _option(1.0, "factor of the alignment loss beside its schedule (paper: 1)", least=0)
    iais_schedule: str = _option("exp", "how the alignment loss grows over the training (paper: exp)", SCHEDULES)
    iais_scale: str = _option(
        "mean", "mean over the anchors, or their sum on each process as the released code (our choice: mean)", SCALES
    )
    pseudo_norm: str = _option(
        "softmax", "how a singular mirrored map becomes row-stochastic (paper's code: softmax)", PSEUDO_NORMS
    )

    negatives: str = _option("sampled", "from the whole training set, or the other pairs of the step", SOURCES)
    negative_size: int = _option(399, "sampled candidates of an anchor (paper: 399)", least=1)
    hard_negatives: int = _option(31, "highest-scored candidates that are trained on (paper: 31)", least=1)
    random_steps: int = _option(0, "first steps, whose negatives are random and need no scoring (paper: 0)", least=0)
    margin: float = _option(0.2, "of the ranking loss, between sigmoids of scores (paper: 0.2)", least=0)

    batch_size: int = _option(
        8, "captions, and as many images, that anchor a step, over all processes (paper: 8 on each of 8 GPUs)", least=1
    )
    anchors_per_forward: int = _option(2, "anchors that share a forward pass (paper: 1)", least=1)
    score_batch: int = _option(
        64, "pairs in a forward pass without gradient; fewer need less padding (paper: 400)", least=1
    )
    num_steps: int = _option(5000, "optimiser steps (paper: 5000)", least=1)
    warmup_steps: int = _option(500, "of the linear warm-up; a linear decay follows (paper: 500)", least=0)
    lr: float = _option(5e-5, "peak step size of AdamW (paper: 5e-5; 3e-5 for COCO with the large model)", least=0)
    weight_decay: float = _option(0.01, "of AdamW (paper: 0.01)", least=0)
    clip_norm: float = _option(2.0, "largest norm of the gradient (paper: 2)", least=0)
    mixed_precision: str = _option("no", "(paper: fp16)", PRECISIONS)
    gradient_checkpointing: bool = _option(False, "recompute activations: less memory, slower")

    valid_steps: int = _option(500, "steps between validations (paper: 500)", least=1)
    valid_images: int = _option(100, "first images of the validation split, with all their captions; 0: all", least=0)
    test_images: int = _option(0, "first images of the test split, with all their captions; 0: all", least=0)
    save_steps: int = _option(500, "steps between checkpoints; each validation makes one too", least=1)
    select: str = _option("rsum", "validation metric that picks the model that is kept (our choice)", METRICS)

    def __post_init__(self) -> None:
        for item in fields(self):
            name, value = flag(item.name), getattr(self, item.name)
            if item.metadata.get("choices"):
                choose(name, value, item.metadata["choices"])
            least = item.metadata.get("least")
            if least is not None and not least <= value < math.inf:
                raise OptionError(f"{name} must be at least {least} and finite, got {value}")
        for item_name in FRACTIONS:
            if getattr(self, item_name) > 1:
                raise OptionError(f"{flag(item_name)} must be at most 1, got {getattr(self, item_name)}")
        candidates, name = (
            (self.negative_size, "--negative-size")
            if self.negatives == "sampled"
            else (self.batch_size - 1, "--batch-size less one")
        )
        if self.hard_negatives > candidates:
            raise OptionError(f"--hard-negatives must be at most {name} = {candidates}, got {self.hard_negatives}")
        if self.encoder == SCRATCH and self.hidden_size % self.num_heads:
            raise OptionError(
                f"--hidden-size must be a multiple of --num-heads = {self.num_heads}, got {self.hidden_size}"
            )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def flag(name: str) -> str:
    """The option's name on the command line."""
    return f"--{name.replace('_', '-')}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` a flag for every field of :class:`Options`."""
    types = get_type_hints(Options)
    for item in fields(Options):
        # Values are checked by Options, so that a program gets the same messages as the command line.
        values = f" ({', '.join(item.metadata['choices'])})" if item.metadata.get("choices") else ""
        if types[item.name] is bool:
            parser.add_argument(flag(item.name), action="store_true", help=item.metadata["help"])
        elif item.default is MISSING:
            parser.add_argument(flag(item.name), required=True, help=item.metadata["help"])
        else:
            text = f"{item.metadata['help']}{values} [{item.default}]".replace("%", "%%")
            metavar = item.name.upper()
            parser.add_argument(
                flag(item.name), type=types[item.name], default=item.default, metavar=metavar, help=text
            )


def parsed_options(arguments: argparse.Namespace) -> Options:
    return Options(**{item.name: getattr(arguments, item.name) for item in fields(Options)})

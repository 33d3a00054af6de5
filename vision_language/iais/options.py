"""Every option of a training run; they are the command line too."""

from __future__ import annotations

from dataclasses import dataclass

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.options import option
from vision_language.iais.alignment import PSEUDO_NORMS, SCHEDULES
from vision_language.iais.evaluate import RECALLS
from vision_language.options import ComputeOptions

__all__ = ["MIRRORS", "SCRATCH", "Options"]

SCRATCH = "scratch"
MIRRORS = ("singular", "distributed")
ALIGNMENTS = (*MIRRORS, "none")
SCALES = ("mean", "sum")
SOURCES = ("sampled", "in-batch")
UNALIGNED, NOT_SINGULAR = {"iais": ("none",)}, {"iais": ("distributed", "none")}


@dataclass(frozen=True, kw_only=True)
class Options(ComputeOptions):
    """Settings of :func:`vision_language.iais.train.train`; their help has the values of the paper's code.

    Raises:
        OptionError: a value that is not allowed.
    """

    data: str = option(help="folder with train, valid and test in the region format", outcome=False)
    encoder: str = option(SCRATCH, f"folder of a Hugging Face BERT encoder with its tokenizer, or {SCRATCH}")
    uniter: str = option(
        "",
        "UNITER checkpoint (.pt or .safetensors) laid over an --encoder of its size: BERT, cased, as the paper's code",
    )
    num_layers: int = option(
        0, "layers of the encoder; 0: all that it has, 2 from scratch (paper's code: 12; large: 24)", least=0
    )
    hidden_size: int = option(128, "width of an encoder from scratch (paper's code: 768; large: 1024)", least=1)
    num_heads: int = option(4, "attention heads of an encoder from scratch (paper's code: 12; large: 16)", least=1)
    intermediate_size: int = option(
        512, "feed-forward width of an encoder from scratch (paper's code: 3072; large: 4096)", least=1
    )
    vocab_size: int = option(
        5000, "most entries of the vocabulary of an encoder from scratch (paper's code: 28996)", least=1
    )
    dropout: float = option(0.1, "dropout everywhere in the model (paper's code: 0.1)", least=0, most=1)
    max_text_length: int = option(60, "most word pieces read per caption (paper's code: 60)", least=3)
    max_regions: int = option(100, "most regions read per image (paper's code: 100)", least=1)

    iais: str = option("singular", "alignment loss of the matched pairs", ALIGNMENTS)
    iais_weight: float = option(
        1.0, "factor of the alignment loss beside its schedule (our addition)", least=0, idle=UNALIGNED
    )
    iais_schedule: str = option(
        "exp", "growth of the alignment loss over the training (paper's code: exp)", tuple(SCHEDULES), idle=UNALIGNED
    )
    iais_scale: str = option(
        "mean",
        "reduction of the alignment loss: mean over anchors (our choice), or sum of those on each process as released",
        SCALES,
        idle=UNALIGNED,
    )
    pseudo_norm: str = option(
        "softmax", "what makes singular mirrors row-stochastic (paper's code: softmax)", PSEUDO_NORMS, idle=NOT_SINGULAR
    )

    negatives: str = option(
        "sampled",
        "source of the negatives: sampled from the whole training set, or the other pairs of the step",
        SOURCES,
    )
    negative_size: int = option(
        399, "sampled candidates of an anchor (paper's code: 399)", least=1, idle={"negatives": ("in-batch",)}
    )
    hard_negatives: int = option(
        31, "highest-scored candidates that are trained on (paper's code: 31)", least=1, aliases=("hard_neg_size",)
    )
    random_steps: int = option(
        0, "first steps of the training, whose negatives are random and need no scoring (our addition)", least=0
    )
    margin: float = option(
        0.2, "margin of the ranking loss, between sigmoids of scores (paper's code: 0.2)", least=0, most=1
    )

    batch_size: int = option(
        8,
        "captions, and as many images, that anchor a step, over all processes (paper's code: 8 on each of 8 GPUs)",
        least=1,
    )
    anchors_per_forward: int = option(2, "anchors that share a forward pass (paper's code: 1)", least=1)
    eval_batch_size: int = option(
        64, "pairs in a forward pass without gradient (paper's code: 400)", least=1, aliases=("score_batch",)
    )
    num_steps: int = option(5000, "optimiser steps (paper's code: 5000)", least=1, aliases=("num_train_steps",))
    warmup_steps: int = option(500, "steps of the linear warm-up; a linear decay follows (paper's code: 500)", least=0)
    lr: float = option(
        5e-5, "peak step size of AdamW (paper's code: 5e-5; large on COCO: 3e-5)", least=0, aliases=("learning_rate",)
    )
    weight_decay: float = option(0.01, "weight decay of AdamW (paper's code: 0.01)", least=0)
    clip_norm: float = option(
        2.0, "largest norm of the gradient; 0: any (paper's code: 2)", least=0, aliases=("grad_norm",)
    )
    attn_implementation: str = option(
        "sdpa", "implementation of self-attention in training; eager is faster in bf16 on a CPU", ("sdpa", "eager")
    )
    gradient_checkpointing: bool = option(False, "recompute activations: less memory, slower")

    validate_every: int = option(
        500,
        "steps between validations; the last step is validated too (paper's code: 500)",
        least=1,
        aliases=("valid_steps",),
    )
    valid_images: int = option(
        100, "images of the validation split that are used, the first, with all captions; 0: all", least=0
    )
    test_images: int = option(
        0, "images of the test split that are used, the first, with all captions; 0: all", least=0
    )
    save_every: int = option(
        500, "steps between checkpoints beside those of validations; 0: none", least=0, aliases=("save_steps",)
    )
    select: str = option("rsum", "validation metric that picks the model that is kept (our choice)", ("rsum", *RECALLS))

    def __post_init__(self) -> None:
        super().__post_init__()
        sampled = self.negatives == "sampled"
        candidates, name = (
            (self.negative_size, "--negative-size") if sampled else (self.batch_size - 1, "--batch-size less one")
        )
        if self.hard_negatives > candidates:
            raise OptionError(f"--hard-negatives must be at most {name} = {candidates}, got {self.hard_negatives}")
        if self.hard_negatives == candidates:
            self.refuse_idle(f"where all candidates are trained on, --hard-negatives {candidates}", "random_steps")
        if self.warmup_steps > self.num_steps:
            raise OptionError(
                f"--warmup-steps must be at most --num-steps = {self.num_steps}, got {self.warmup_steps}: "
                "the step size would never reach --lr"
            )
        if self.encoder != SCRATCH:
            sizes = ("hidden_size", "num_heads", "intermediate_size", "vocab_size")
            self.refuse_idle(f"with --encoder {self.encoder}", *sizes)
        elif self.uniter:
            raise OptionError(
                f"--uniter {self.uniter}: needs the folder of a BERT of its size, for the tokenizer, as --encoder"
            )
        elif self.hidden_size % self.num_heads:
            raise OptionError(
                f"--hidden-size must be a multiple of --num-heads = {self.num_heads}, got {self.hidden_size}"
            )
        if not self.iais_weight:
            self.refuse_idle("with --iais-weight 0", "iais_schedule", "iais_scale", "pseudo_norm")
        if self.batch_size == 1:
            self.refuse_idle("with --batch-size 1", "iais_scale")

"""Every option of the two kinds of training and of the diagnosis; the command lines are made from these classes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.options import OptionSet, option, seed_option
from vision_language.muka.uncertainty import OF_SEVERAL_PASSES, SCORES
from vision_language.options import ComputeOptions

__all__ = [
    "FEATURE_METHODS",
    "AmalgamationOptions",
    "DiagnosisOptions",
    "ScoreOptions",
    "TeacherOptions",
    "TrainingOptions",
]

OF_MUKA = ("margin", "no_mc", "score", "passes", "teacher_dropout", "score_temperature")
IDLE_BESIDE = {
    "muka-soft": (),
    "muka-hard": ("score_temperature",),
    **dict.fromkeys(("vkd", "uhc", "dfa", "cfl"), OF_MUKA),
    "supervised": ("teachers", "rename", "temperature", "cache", *OF_MUKA),
}
"""Each method, and the options that it would ignore."""
METHODS = tuple(IDLE_BESIDE)
FEATURE_METHODS = ("dfa", "cfl")
TEACHER_LOSSES = ("cross-entropy", "encouraging")
SELECTIONS = ("loss", "accuracy")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(ComputeOptions):
    """What every training has; "released" is the paper's code.

    Raises:
        OptionError: a value that is not allowed.
    """

    data: tuple[str, ...] = option(
        help="folder with train, valid and test files (.tsv of label TAB text, .txt of texts, also .gz) or saved data "
        "sets, or a file of training texts; several are joined",
        outcome=False,
    )
    num_layers: int = option(0, "layers of the model that are kept, the first; 0: all", least=0, aliases=("layers",))
    from_scratch: bool = option(False, "take only the model's shape and tokenizer, with random weights")
    max_length: int = option(128, "most tokens of a text, longer ones are cut (released: 128)", least=2)
    epochs: int = option(3, "passes over the training texts (released: 3)", least=1)
    batch_size: int = option(16, "texts of a step, over all processes (released: 16; baselines 32)", least=1)
    lr: float = option(2e-5, "largest step size of AdamW (released: 2e-5)", above=0)
    warmup: float = option(
        0.1, "share of the steps in which the step size rises, before a linear decay (released: 0.1)", least=0, most=1
    )
    weight_decay: float = option(
        0.0, "weight decay of matrices, not of biases and norms (transformers' default: 0)", least=0
    )
    clip_norm: float = option(
        1.0, "largest norm of the gradient (transformers' default: 1)", above=0, aliases=("max_grad_norm",)
    )
    validate_every: int = option(
        0, "steps between validations, 0: each epoch (released: 200)", least=0, aliases=("eval_every",)
    )
    save_every: int = option(0, "steps between checkpoints beside those of validations, 0: none", least=0)
    eval_batch_size: int = option(64, "texts of a forward pass without training (released: 64)", least=1)
    valid_fraction: float = option(
        0.05,
        "share of the training texts held out where there are no validation texts (released: 0.05)",
        above=0,
        most=0.9,
    )
    seed: int = seed_option(1, "seed of the new layers, the order, dropout and the hold-out (released: 1)")

    def steps(self, texts: int) -> tuple[int, int, int]:
        """The steps of an epoch over so many texts, of all epochs, and of the warm-up."""
        per_epoch = math.ceil(texts / self.batch_size)
        return per_epoch, per_epoch * self.epochs, math.ceil(self.warmup * per_epoch * self.epochs)


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(TrainingOptions):
    """Settings of :func:`~vision_language.muka.train.train_teacher`."""

    model: str = option(help="folder of the pre-trained model to start from")
    part: str = option(
        "", "part of the classes: I/T, the I-th of T parts of the sorted classes, the last with the rest (default: all)"
    )
    classes: tuple[str, ...] = option((), "names of the classes, in place of --part")
    batch_size: int = option(64, "texts of a step, over all processes (released: 64)", least=1)
    loss: str = option("cross-entropy", "loss that is minimised", TEACHER_LOSSES)
    log_end: float = option(
        0.75,
        "end of the logarithm of --loss encouraging (its paper: 0.75)",
        least=0,
        most=1,
        idle={"loss": ("cross-entropy",)},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part and self.classes:
            raise OptionError(f"--part {self.part}: not together with --classes")
        if self.part:
            self.part_numbers()

    def part_numbers(self) -> tuple[int, int]:
        """I and T of ``part``."""
        first, slash, last = self.part.partition("/")
        if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise OptionError(f"--part must be I/T with 1 <= I <= T, such as 1/2, got {self.part!r}")
        return int(first), int(last)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(OptionSet):
    """The teachers, and what their certainty is measured by.

    Raises:
        OptionError: a value that is not allowed.
    """

    teachers: tuple[str, ...] = option((), "folders of two or more trained classifiers")
    rename: tuple[str, ...] = option(
        (), "another name for a class of the teachers, OLD=NEW; of the second only, 2:OLD=NEW; such as 1:LABEL_0=sport"
    )
    no_mc: bool = option(False, "take the scores from one pass without dropout")
    score: str = option("entropy", "certainty of a teacher (released: entropy)", SCORES)
    passes: int = option(16, "Monte-Carlo dropout passes K (released: 16)", least=1, idle={"no_mc": (True,)})
    teacher_dropout: float = option(
        0.0,
        "dropout probability of the passes, 0: each teacher its own (released: 0.1)",
        least=0,
        below=1,
        idle={"no_mc": (True,)},
    )
    temperature: float = option(1.0, "softmax temperature of teachers and student (released: 1)", above=0)
    score_temperature: float = option(0.2, "softmax temperature of the scores, muka-soft (released: 0.2)", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score in OF_SEVERAL_PASSES and (self.no_mc or self.passes == 1):
            given = "--no-mc" if self.no_mc else "--passes 1"
            raise OptionError(f"--score {self.score}: needs several passes, not {given}")

    def check_teachers(self) -> None:
        """Refuse fewer than two teachers."""
        if len(self.teachers) < 2:
            raise OptionError(f"--teachers: at least two are needed, got {len(self.teachers)}")


@dataclass(frozen=True, kw_only=True)
class AmalgamationOptions(ScoreOptions, TrainingOptions):
    """Settings of :func:`~vision_language.muka.train.amalgamate`."""

    student: str = option(help="folder of the pre-trained model that the student starts from")
    method: str = option(
        "muka-soft", "how the teachers are merged; supervised learns from the labels, without any", METHODS
    )
    margin: bool = option(
        True, "weigh each text by the lead of the most certain teacher (what we call MUKI; without, MUKA)"
    )
    amalgam_lr: float = option(
        1e-3,
        "step size of the layers that dfa and cfl add (meant by the released code: 1e-3)",
        above=0,
        idle={"method": tuple(set(METHODS) - set(FEATURE_METHODS))},
    )
    select: str = option(
        "loss",
        "figure of the validation texts that picks the checkpoint: loss against the teachers, no labels needed; or "
        "accuracy (released: accuracy)",
        SELECTIONS,
    )
    until_converged: bool = option(
        False,
        "end the training once the validation loss, without labels, is flat; --epochs are then the most (our choice)",
    )
    cache: str = option(
        "", "folder of the teachers' logits and scores, to share between runs (default: OUT/cache)", outcome=False
    )

    @property
    def weighs_teachers(self) -> bool:
        """Whether the method needs the teachers' scores."""
        return self.method in ("muka-soft", "muka-hard")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_idle(f"with --method {self.method}", *IDLE_BESIDE[self.method])
        if self.method != "supervised":
            self.check_teachers()


@dataclass(frozen=True, kw_only=True)
class DiagnosisOptions(ScoreOptions):
    """Settings of :func:`~vision_language.muka.evaluate.diagnose_teachers`."""

    student: str = option("", "folder of a merged classifier, for its accuracy and calibration")
    supervised: str = option(
        "", "folder of a classifier trained on all classes, for the distance of the targets from it"
    )
    seed: int = seed_option(1, "seed of the dropout", idle={"no_mc": (True,)})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_teachers()
        if not self.supervised:
            self.refuse_idle("without --supervised", "score_temperature")
        if not self.supervised and not self.no_mc:
            self.refuse_idle("without --supervised or --no-mc", "temperature")

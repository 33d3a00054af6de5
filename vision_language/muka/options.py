"""Every option of the two kinds of training; the command line is made from these classes."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fairseq_ext.errors import OptionError
from fairseq_ext.options import OptionSet, flag, option
from vision_language.accelerator import PRECISIONS
from vision_language.muka.uncertainty import SCORES

METHODS = ("muka-soft", "muka-hard", "vkd", "uhc", "dfa", "cfl", "supervised")
TEACHER_LOSSES = ("cross-entropy", "encouraging")
SELECTIONS = ("loss", "accuracy")
OF_MUKA = ("margin", "no_mc", "score", "passes", "score_temperature")
"""Options that the other methods would ignore."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(OptionSet):
    """What every training has; "released" is the paper's code.

    Raises:
        OptionError: a value that is not allowed.
    """

    data: tuple[str, ...] = option(
        help="folder with train, valid and test files (.tsv of label TAB text, .txt of texts, also .gz) or saved data "
        "sets, or a file of training texts; several are joined"
    )
    max_length: int = option(128, "tokens of a text, longer ones are cut (released: 128)", least=2)
    epochs: int = option(3, "passes over the training texts (released: 3)", least=1)
    batch_size: int = option(16, "texts of a step, over all processes", least=1)
    lr: float = option(2e-5, "largest step size of AdamW (released: 2e-5)", above=0)
    warmup: float = option(
        0.1, "share of the steps in which it rises, before its linear decay (released: 0.1)", least=0, most=1
    )
    weight_decay: float = option(0.0, "of matrices, not of biases and norms (released: 0)", least=0)
    max_grad_norm: float = option(1.0, "longer gradients are cut to this norm (released: 1)", above=0)
    eval_every: int = option(0, "steps between validations, 0: each epoch (released: 200)", least=0)
    save_every: int = option(0, "steps between checkpoints beside those of validations, 0: none", least=0)
    eval_batch_size: int = option(64, "texts of a step without training (released: 64)", least=1)
    valid_fraction: float = option(
        0.05,
        "share of the training texts held out where there is no validation file (released: 0.05)",
        above=0,
        most=0.9,
    )
    mixed_precision: str = option("no", "number format of the forward pass (released: fp16)", PRECISIONS)
    seed: int = option(1, "of the new layers, the order, dropout and the hold-out (released: 1)", least=0)


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(TrainingOptions):
    """Settings of :func:`~vision_language.muka.train.train_teacher`."""

    model: str = option(help="folder of the pre-trained model to start from")
    layers: int = option(0, "keep only its first so many layers, 0: all", least=0)
    from_scratch: bool = option(False, "take only the shape and the tokenizer of --model, with random weights")
    part: str = option("", "I/T: the I-th of T parts of the sorted classes, the last with the rest (default: all)")
    classes: tuple[str, ...] = option((), "the classes by name instead")
    batch_size: int = option(64, "texts of a step, over all processes (released: 64)", least=1)
    loss: str = option("cross-entropy", "what is minimised", TEACHER_LOSSES)
    log_end: float = option(0.75, "where the logarithm of --loss encouraging ends (its paper: 0.75)", least=0, most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part and self.classes:
            raise OptionError(f"--part {self.part}: not together with --classes")
        if self.part:
            self.part_numbers()
        if self.loss != "encouraging" and self.log_end != 0.75:
            raise OptionError(f"--log-end {self.log_end}: has no effect with --loss {self.loss}")

    def part_numbers(self) -> tuple[int, int]:
        """I and T of ``part``."""
        first, slash, last = self.part.partition("/")
        if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise OptionError(f"--part must be I/T with 1 <= I <= T, such as 1/2, got {self.part!r}")
        return int(first), int(last)


@dataclass(frozen=True, kw_only=True)
class AmalgamationOptions(TrainingOptions):
    """Settings of :func:`~vision_language.muka.train.amalgamate`."""

    teachers: tuple[str, ...] = option((), "folders of two or more trained classifiers (none with --method supervised)")
    student: str = option(help="folder of the pre-trained model that the student starts from")
    layers: int = option(0, "keep only its first so many layers, 0: all", least=0)
    from_scratch: bool = option(False, "take only the shape and the tokenizer of --student, with random weights")
    method: str = option("muka-soft", "how the teachers are merged; supervised learns from the labels", METHODS)
    batch_size: int = option(16, "texts of a step, over all processes (released: 16; baselines 32)", least=1)
    margin: bool = option(
        True, "weigh each text by the lead of the most certain teacher (MUKA without, MUKI with) [--margin]"
    )
    no_mc: bool = option(False, "scores from one pass without dropout")
    score: str = option("entropy", "certainty of a teacher (paper: entropy)", SCORES)
    passes: int = option(16, "Monte-Carlo dropout passes K (released: 16)", least=1)
    temperature: float = option(1.0, "softmax temperature of teachers and student (released: 1)", above=0)
    score_temperature: float = option(0.2, "softmax temperature of the scores, muka-soft (released: 0.2)", above=0)
    amalgam_lr: float = option(
        1e-3, "step size of the layers that dfa and cfl add (meant by the released code: 1e-3)", above=0
    )
    select: str = option(
        "loss",
        "what picks the checkpoint on the validation texts: loss against the teachers, no labels needed; or "
        "accuracy (released: accuracy)",
        SELECTIONS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        supervised, defaults = self.method == "supervised", {item.name: item.default for item in fields(self)}
        if len(self.teachers) < 2 and not supervised:
            raise OptionError(f"--teachers: at least two are needed, got {len(self.teachers)}")
        if supervised and self.teachers:
            raise OptionError("--teachers: none with --method supervised, which learns from the labels")
        idle = [] if self.method.startswith("muka") else list(OF_MUKA)
        idle += ["score_temperature"] if self.method == "muka-hard" else []
        idle += ["passes"] if self.no_mc else []
        idle += ["temperature"] if supervised else []
        idle += [] if self.method in ("dfa", "cfl") else ["amalgam_lr"]
        for name in idle:
            if getattr(self, name) != defaults[name]:
                how = "--no-mc" if name == "passes" and self.no_mc else f"--method {self.method}"
                shown = "--no-margin" if name == "margin" else f"{flag(name)} {getattr(self, name)}"
                raise OptionError(f"{shown}: has no effect with {how}")
        if self.no_mc and self.score in ("variance", "mutual_info"):
            raise OptionError(f"--score {self.score}: needs several passes, not --no-mc")

"""Every option of a training; the command line is made from these classes. "released" is the paper's code."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fairseq_ext.losses.bonus_schedule import SCHEDULES
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.flags import Precision
from fairseq_ext.training.options import OptionSet, flag, option, seed_option
from vision_language.image_classification.long_tail import KINDS
from vision_language.image_classification.transforms import AUGMENTATIONS

__all__ = ["DataOptions", "LossOptions", "NetworkOptions", "Options"]

LOSSES = ("cross-entropy", "encouraging", "focal", "halted-focal", "mse", "mae", "mirror-mse", "mirror-mae")
BONUSES = ("log", "power", "cosine")
NOT_ENCOURAGING = tuple(loss for loss in LOSSES if loss != "encouraging")
WITHOUT_BONUS = {"loss": NOT_ENCOURAGING}
WITHOUT_STEPS = {"attack": ("", "fgsm")}
NETWORKS = ("three-convolutions", "large-margin-cnn", "resnet32", "resnet18", "resnet50", "efficientnet-b0")


@dataclass(frozen=True, kw_only=True)
class DataOptions(OptionSet):
    """The images."""

    data: str = option(
        help="folder of idx files, CIFAR batches, .npz files or SPLIT/CLASS/ images; or one .npz file", outcome=False
    )
    long_tail: str = option("", "cut a long tail from the training images (default: no)", ("", *KINDS))
    imbalance_factor: float = option(
        100.0, "images of the tail's largest class for one of its smallest", least=1, idle={"long_tail": ("",)}
    )
    largest_class: int = option(
        0,
        "images of the tail's largest class; 0: as many as the smallest class had",
        least=0,
        idle={"long_tail": ("",)},
    )
    valid_fraction: float = option(
        0.1, "share of each class held out where there are no validation images; 0: none", least=0, most=0.9
    )
    subset_seed: int = seed_option(0, "seed of the tail and the hold-out, whatever the seed of a run")


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(OptionSet):
    """The network."""

    network: str = option(
        "three-convolutions",
        f"network: {', '.join(NETWORKS)}; a folder of a Hugging Face image classifier; or timm:NAME (timm)",
    )
    image_size: int = option(0, "height and width that the network sees; 0: those of the training images", least=0)
    width: int = option(0, "channels of large-margin-cnn, 0: 64 as released", least=0)
    margin: int = option(1, "m of the large-margin softmax of large-margin-cnn (paper: 1 and 2)", least=1)
    cosine_scale: float = option(0.0, "last layer of cosines times this scale (LDAM: 30), 0: a linear layer", least=0)
    from_scratch: bool = option(False, "take only the shape of a Hugging Face model, with random weights")
    normalize: bool = option(True, "subtract the mean of the training images and divide by their deviation")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network != "large-margin-cnn":
            self.refuse_idle(f"with --network {self.network}", "width", "margin")
        if self.cosine_scale:
            self.refuse_idle(f"with --cosine-scale {self.cosine_scale:g}, another last layer", "margin")
        if self.network in NETWORKS or self.network.startswith("timm:"):
            self.refuse_idle(f"with --network {self.network}, which has no other weights", "from_scratch")
        else:
            self.refuse_idle(f"with --network {self.network}, which has a normalisation of its own", "normalize")


@dataclass(frozen=True, kw_only=True)
class LossOptions(OptionSet):
    """The loss."""

    loss: str = option("encouraging", "loss that is minimised; mirror-: with the mirror bonus", LOSSES)
    label_smoothing: float = option(
        0.0,
        "label smoothing of cross-entropy and bonus (released: 0 and 0.1)",
        least=0,
        below=1,
        idle={"loss": ("focal", "halted-focal", "mse", "mae", "mirror-mse", "mirror-mae")},
    )
    bonus: str = option("log", "form of the bonus", BONUSES, idle=WITHOUT_BONUS)
    log_end: float = option(
        0.75,
        "probability at which --bonus log turns linear (paper: 1 on MNIST, 0.75 on CIFAR)",
        least=0,
        most=1,
        idle=WITHOUT_BONUS,
    )
    bonus_start: float = option(
        0.0, "probability below which there is no bonus (paper's aggressive: 0.5)", least=0, below=1, idle=WITHOUT_BONUS
    )
    bonus_power: float = option(1.0, "exponent of --bonus power", above=0, idle={"bonus": ("log", "cosine")})
    bonus_weight: float = option(1.0, "factor of the bonus", least=0, idle=WITHOUT_BONUS)
    bonus_from: int = option(1, "first epoch with the bonus, counted from 1", least=1, idle=WITHOUT_BONUS)
    schedule: str = option("none", "how the bonus grows over the epochs", tuple(SCHEDULES), idle=WITHOUT_BONUS)
    activation: str = option(
        "softmax",
        "how mse and mae, with the mirror bonus or without, make probabilities of logits; the paper has both",
        ("softmax", "sigmoid"),
        idle={"loss": (*LOSSES[:4],)},
    )
    mirror_power: float = option(2.0, "exponent of the mirror bonus (paper: 2)", above=0, idle={"loss": (*LOSSES[:6],)})
    gamma: float = option(
        1.0,
        "focusing exponent of focal losses (released: 1)",
        least=0,
        idle={"loss": tuple(loss for loss in LOSSES if "focal" not in loss)},
    )
    adjust_logits: str = option(
        "none",
        "change of the logits in training: ldam subtracts margins, prior adds the logarithm of the class sizes",
        ("none", "ldam", "prior"),
    )
    reweight: str = option(
        "none", "what is weighted by the effective number of a class's images", ("none", "loss", "bonus", "both")
    )
    beta: float = option(0.9999, "beta of the effective number", least=0, below=1, idle={"reweight": ("none",)})
    reweight_from: int = option(
        1,
        "first epoch of the weights of --reweight (deferred re-weighting: 161 of 200)",
        least=1,
        idle={"reweight": ("none",)},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bonus != "log":
            self.refuse_idle(f"with --bonus {self.bonus}", "log_end")
        if self.reweight in ("bonus", "both") and self.loss != "encouraging":
            raise OptionError(f"--reweight {self.reweight}: --loss {self.loss} has no bonus")


@dataclass(frozen=True, kw_only=True)
class Options(DataOptions, NetworkOptions, LossOptions, Precision):
    """A training.

    Raises:
        OptionError: a value that is not allowed, or one that would do nothing.
    """

    augment: str = option(
        "none",
        "augmentation in training: pad-crop, by 4 pixels, or resized-crop, a random part; both flip half of them",
        AUGMENTATIONS,
    )
    optimizer: str = option("adam", "optimiser of the training", ("adam", "sgd"))
    lr: float = option(1e-3, "largest step size (released: 1e-3 with Adam, 0.1 with SGD)", above=0)
    momentum: float = option(0.9, "momentum of --optimizer sgd", least=0, below=1, idle={"optimizer": ("adam",)})
    nesterov: bool = option(False, "take Nesterov's momentum", idle={"optimizer": ("adam",)})
    weight_decay: float = option(0.0, "L2 penalty of all parameters", least=0)
    lr_schedule: str = option(
        "constant",
        "how the step size falls; cosine begins at --lr, cosine-released is one epoch ahead, with 0 in the last epoch",
        ("constant", "steps", "cosine", "cosine-released"),
    )
    lr_steps: tuple[int, ...] = option(
        (), "epochs from which the step size is multiplied by --lr-factor, counted from 1"
    )
    lr_factor: float = option(0.1, "factor of the step size at each of --lr-steps", above=0, below=1)
    warmup_epochs: int = option(0, "epochs in which the step size rises to --lr", least=0)
    epochs: int = option(5, "passes over the training images", least=1)
    batch_size: int = option(128, "images of a step, over all processes", least=1)
    eval_batch_size: int = option(512, "images of a forward pass without training", least=1)
    shuffle: bool = option(
        True, "read the training images in a new order in each epoch (released adversarial MNIST: none)"
    )
    select_on: str = option(
        "valid",
        "split that picks the epoch; test: as the released code, for comparison only; last: the last epoch",
        ("valid", "test", "last"),
        aliases=("select",),
    )
    freeze: bool = option(
        False,
        "train the second stage of cRT: a new last layer, on classes drawn evenly, one image at a time (released: "
        "four of a class); needs --init",
    )
    init: str = option("", "folder of a trained model to start from")
    workers: int = option(0, "processes that read images", least=0, outcome=False)
    attack: str = option("", "train on attacked images (default: no)", ("", "fgsm", "pgd", "pgd-l2"))
    epsilon: float = option(
        0.3, "radius of --attack in pixels (released: 0.3, of pgd-l2 3)", above=0, idle={"attack": ("",)}
    )
    attack_steps: int = option(7, "steps of --attack pgd and pgd-l2 (released: 7)", least=1, idle=WITHOUT_STEPS)
    attack_step_size: float = option(
        0.1, "step size of --attack pgd and pgd-l2 (released: 0.1 of pgd, 0.2 of pgd-l2)", above=0, idle=WITHOUT_STEPS
    )
    seed: int = seed_option(1, "seed of weights, order and dropout")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack in ("fgsm", "pgd") and self.epsilon > 1:
            raise OptionError(
                f"--epsilon must be at most 1 with --attack {self.attack}, in pixels from 0 to 1, got {self.epsilon:g}"
            )
        if self.lr_schedule == "cosine-released" and self.epochs == 1:
            raise OptionError(
                "--lr-schedule cosine-released: its last epoch learns nothing, and --epochs 1 has no other"
            )
        if self.lr_schedule != "steps":
            self.refuse_idle(f"with --lr-schedule {self.lr_schedule}", "lr_steps", "lr_factor")
        elif not self.lr_steps:
            raise OptionError("--lr-schedule steps: needs the epochs, --lr-steps")
        if self.init:
            self.refuse_idle(
                f"with --init {self.init}, whose network it is", *(item.name for item in fields(NetworkOptions))
            )
        if self.freeze:
            self.refuse_idle("with --freeze, which draws the classes evenly", "shuffle")
        if self.freeze and not self.init:
            raise OptionError("--freeze: needs the model of the first stage, --init FOLDER")
        for name in ("bonus_from", "reweight_from", "warmup_epochs"):
            if getattr(self, name) > self.epochs:
                raise OptionError(f"{flag(name)} {getattr(self, name)}: there are only --epochs {self.epochs}")
        steps = list(self.lr_steps)
        if steps != sorted(set(steps)) or any(not 2 <= epoch <= self.epochs for epoch in steps):
            raise OptionError(
                f"--lr-steps must rise, from 2 to --epochs {self.epochs}, got {' '.join(map(str, steps))}"
            )

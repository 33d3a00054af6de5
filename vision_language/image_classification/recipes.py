"""Published recipes by name: options of ``train``, each with its source, and the command that prints them.

The sources are arXiv:2110.06537 with its released code (its folder is named) and the authors' slides, and LDAM-DRW
(arXiv:1906.07413) for long-tailed CIFAR.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

from fairseq_ext.training.errors import choose
from fairseq_ext.training.options import OptionSet, option
from fairseq_ext.training.sources import OURS, SourcedValues, by

__all__ = ["RECIPES", "Recipe", "RecipeOptions", "as_yaml", "recipe"]

PROGRAM = "python -m vision_language.image_classification"


class Recipe(NamedTuple):
    """Options of ``train`` by name; ``missing`` tells what was published too, but is no option here."""

    summary: str
    settings: SourcedValues
    missing: str = ""


SLIDES, ATTACKED = "the authors' slides", "released code, adversarial_robustness"
MNIST_CODE, CIFAR_CODE = "released code, mnist", "released code, cifar"
IMAGENET_CODE, TAIL_CODE = "released code, imagenet", "released code, imbalanced-classification"
LDAM = "LDAM-DRW, arXiv:1906.07413"

MNIST = by(
    MNIST_CODE,
    **{"network": "large-margin-cnn", "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0},
    **{"batch_size": 256, "epochs": 100, "lr_schedule": "steps", "lr_steps": (51, 65), "lr_factor": 0.1},
    **{"seed": 0, "runs": 5},
)
DIGITS_UNDER_ATTACK = by(
    ATTACKED,
    **{"network": "three-convolutions", "normalize": False, "shuffle": False, "optimizer": "adam", "lr": 1e-3},
    **{"batch_size": 128, "epochs": 5},
)
AT_224 = {"image_size": 224, "augment": "resized-crop", "optimizer": "sgd", "momentum": 0.9}
CIFAR = by(
    CIFAR_CODE,
    **{**AT_224, "nesterov": True, "weight_decay": 1e-4, "epochs": 90},
    **{"lr_schedule": "steps", "lr_steps": (30, 60, 80), "lr_factor": 0.1, "runs": 5},
)
CIFAR_RESNET = CIFAR | by(CIFAR_CODE, network="resnet50", lr=0.025, batch_size=64)
CIFAR_EFFICIENTNET = CIFAR | by(CIFAR_CODE, network="efficientnet-b0", lr=0.0125, batch_size=32)
IMAGENET_RESNET = by(
    f"{IMAGENET_CODE}-resnet50",
    **{**AT_224, "network": "resnet50", "lr": 0.1, "weight_decay": 1e-4, "batch_size": 256, "epochs": 90},
    **{"lr_schedule": "steps", "lr_steps": (31, 61), "lr_factor": 0.1, "seed": 1, "runs": 5},
)
IMAGENET_EFFICIENTNET = by(f"{OURS}, in place of rmsproptf", optimizer="sgd", momentum=0.9) | by(
    f"{IMAGENET_CODE}-efficientnetb0",
    **{"network": "efficientnet-b0", "image_size": 224, "augment": "resized-crop", "lr": 0.048, "weight_decay": 1e-5},
    **{"batch_size": 768, "epochs": 450, "mixed_precision": "fp16", "label_smoothing": 0.1},
    # times 0.97 every 2.4 epochs
    **{"lr_schedule": "steps", "lr_steps": tuple(-(-12 * k // 5) + 1 for k in range(1, 188)), "lr_factor": 0.97},
)
NOT_RMSPROP = (
    "rmsproptf with eps 1e-3, a warm-up from 1e-6, moving averages of the weights (0.9999), RandAugment (m9, mstd "
    "0.5), random erasing (0.2)"
)
TAIL_STAGE = by(
    TAIL_CODE,
    **{"augment": "resized-crop", "optimizer": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 1e-4},
    **{"batch_size": 512, "lr_schedule": "cosine-released"},
)
INATURALIST = TAIL_STAGE | by(TAIL_CODE, network="resnet50", image_size=224, epochs=200)
CIFAR_TAIL = by(
    LDAM,
    **{"network": "resnet32", "augment": "pad-crop", "long_tail": "exponential", "imbalance_factor": 100.0},
    **{"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4, "batch_size": 128, "epochs": 200},
    **{"warmup_epochs": 5, "lr_schedule": "steps", "lr_steps": (161, 181), "lr_factor": 0.01},
)


def _ce(source: str) -> SourcedValues:
    return by(source, loss="cross-entropy")


def _el(source: str, log_end: float) -> SourcedValues:
    return by(source, loss="encouraging", log_end=log_end)


def _drw(source: str, epoch: int, reweight: str = "loss") -> SourcedValues:
    return by(source, reweight=reweight, reweight_from=epoch, beta=0.9999)


SMOOTHED, MARGIN_2 = by(SLIDES, label_smoothing=0.1), by(MNIST_CODE, margin=2)
ATTACKS = {
    "fgsm": by(ATTACKED, attack="fgsm", epsilon=0.3),
    "pgd": by(ATTACKED, attack="pgd", epsilon=0.3, attack_steps=7, attack_step_size=0.1),
    "pgd-l2": by(ATTACKED, attack="pgd-l2", epsilon=3.0, attack_steps=7, attack_step_size=0.2),
}
ERRORS = {
    f"mse-{activation}{'-mirror' if mirror else ''}": by(
        SLIDES,
        **{"loss": "mirror-mse" if mirror else "mse", "activation": activation},
        **({"mirror_power": 2.0} if mirror else {}),
    )
    for activation in ("softmax", "sigmoid")
    for mirror in (False, True)
}
TAIL_ROWS: dict[str, tuple[str, SourcedValues]] = {
    "ce": ("cross-entropy", _ce(TAIL_CODE)),
    "el": ("normal bonus", _el(TAIL_CODE, 1.0)),
    "el-half": ("bonus up to LE 0.5", _el(TAIL_CODE, 0.5)),
    "aggressive": ("aggressive bonus", _el(TAIL_CODE, 1.0) | by(TAIL_CODE, bonus_start=0.5)),
    "drw": ("deferred re-weighting", _ce(TAIL_CODE) | _drw(TAIL_CODE, 181)),
    "drw-el": (
        "deferred re-weighting, with the bonus from the same epoch",
        _el(TAIL_CODE, 1.0) | by(TAIL_CODE, bonus_from=181) | _drw(TAIL_CODE, 181, "both"),
    ),
    "focal": ("focal loss", by(TAIL_CODE, loss="focal", gamma=1.0)),
    "halted-focal": ("halted focal loss", by(SLIDES, loss="halted-focal", gamma=1.0)),
}
CIFAR_TAIL_ROWS: dict[str, tuple[str, SourcedValues]] = {
    "ce": ("cross-entropy", _ce(LDAM)),
    "drw": ("deferred re-weighting", _ce(LDAM) | _drw(LDAM, 161)),
    "ldam-drw": (
        "LDAM, without a bonus, with deferred re-weighting",
        _ce(LDAM) | by(LDAM, adjust_logits="ldam", cosine_scale=30.0) | _drw(LDAM, 161),
    ),
    "drw-el": (
        "deferred re-weighting, with the bonus from the same epoch",
        _el(OURS, 1.0) | by(OURS, bonus_from=161, reweight="both") | by(LDAM, reweight_from=161, beta=0.9999),
    ),
}


def _both(name: str, summary: str, settings: SourcedValues, log_end: float, missing: str = "") -> dict[str, Recipe]:
    source = settings["epochs"].source
    return {
        f"{name}-ce": Recipe(f"{summary}, cross-entropy", settings | _ce(source), missing),
        f"{name}-el": Recipe(f"{summary}, encouraging loss, LE {log_end:g}", settings | _el(source, log_end), missing),
    }


RECIPES: dict[str, Recipe] = {
    **_both("mnist", "MNIST, L-Softmax network", MNIST, 1.0),
    **_both("mnist-smoothed", "MNIST, L-Softmax network, smoothed labels", MNIST | SMOOTHED, 1.0),
    **_both("mnist-margin2", "MNIST, L-Softmax network, margin 2", MNIST | MARGIN_2, 1.0),
    **{
        f"mnist-{name}": Recipe(
            f"MNIST, L-Softmax network, {row['loss'].value}, {row['activation'].value}", MNIST | row
        )
        for name, row in ERRORS.items()
    },
    **_both("attacked-mnist", "MNIST under attack", DIGITS_UNDER_ATTACK, 1.0),
    **{
        name: each
        for attack, row in ATTACKS.items()
        for name, each in _both(
            f"attacked-mnist-{attack}", f"MNIST, trained under {attack}", DIGITS_UNDER_ATTACK | row, 1.0
        ).items()
    },
    **_both("cifar-resnet50", "CIFAR-10 and CIFAR-100 at 224, ResNet-50", CIFAR_RESNET, 0.75),
    **_both("cifar-efficientnet-b0", "CIFAR-10 and CIFAR-100 at 224, EfficientNet-B0", CIFAR_EFFICIENTNET, 0.75),
    **_both("imagenet-resnet50", "ImageNet, ResNet-50", IMAGENET_RESNET, 0.75),
    **_both("imagenet-efficientnet-b0", "ImageNet, EfficientNet-B0", IMAGENET_EFFICIENTNET, 0.75, NOT_RMSPROP),
    **{
        f"inaturalist-{name}": Recipe(f"iNaturalist 2018, ResNet-50, {summary}", INATURALIST | row)
        for name, (summary, row) in TAIL_ROWS.items()
    },
    "inaturalist-crt": Recipe(
        "iNaturalist 2018, second stage of cRT on the model --init of inaturalist-ce or inaturalist-el",
        TAIL_STAGE | _ce(TAIL_CODE) | by(TAIL_CODE, freeze=True, epochs=30),
        "four images of a class drawn at a time: here one",
    ),
    **{
        f"cifar-tail-{name}": Recipe(f"long-tailed CIFAR, ResNet-32, {summary}", CIFAR_TAIL | row)
        for name, (summary, row) in CIFAR_TAIL_ROWS.items()
    },
}
"""Recipes by name. A recipe names neither the data nor the split that picks the epoch."""


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(OptionSet):
    """Which recipe."""

    name: str = option("", "name of a recipe (default: none, list all)", positional=True)


def recipe(options: RecipeOptions) -> str:
    """Print a published recipe as a file for train --config; without a name, list all recipes.

    Raises:
        OptionError: no recipe of this name.
    """
    if not options.name:
        width = max(map(len, RECIPES))
        return "\n".join(f"{name:<{width}}  {each.summary}" for name, each in RECIPES.items())
    return as_yaml(choose("recipe", options.name, tuple(RECIPES)))


def as_yaml(name: str) -> str:
    """A recipe as YAML, each option with its source in a comment.

    Args:
        name: one of ``RECIPES``.
    """
    summary, settings, missing = RECIPES[name]
    more = " --init FOLDER" if "freeze" in settings else ""
    lines = [f"# {summary}", f"# {PROGRAM} train --config FILE --data FOLDER{more} --out runs/{name}"]
    lines.append("# The released code picks the epoch on the test set: --select-on test --valid-fraction 0")
    lines += [f"# Published, and not done here: {missing}"] * bool(missing)
    lines += [f"{key}: {json.dumps(setting.value)}  # {setting.source}" for key, setting in settings.items()]
    return "\n".join(lines)

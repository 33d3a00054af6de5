"""A recipe as the commands that a user pastes: train, average, translate or evaluate, score."""

from __future__ import annotations

import hashlib
import re
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fairseq_ext.recipes.presets import PRESETS
from fairseq_ext.recipes.recipe import Recipe, values
from fairseq_ext.recipes.sections import SECTIONS
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.options import MOST_SEED, flag
from fairseq_ext.training.sources import SourcedValues, by

__all__ = ["adapted", "commands", "more_tokens", "sources"]

USER_DIR = '--user-dir "$(fairseq-ext user-dir)"'
GIVEN = "adapted to what was given"
WORDS = 60
"""Letters of a folder's name that say what is changed; a digest stands for the rest."""


def adapted(
    recipe: Recipe, gpus: int | None = None, device: str = "cuda", seed: int | None = None, average: int | None = None
) -> Recipe:
    """The recipe with the values that a user has chosen, which have a source of their own.

    Args:
        recipe: the recipe.
        gpus: number of GPUs that train; default: the recipe's, or 1 on a CPU. ``update_freq`` is adapted, and the size
            of a batch if that cannot be divided further; if neither can, ``times`` says how much an update sees.
        device: ``"cuda"`` or ``"cpu"``, which trains in single precision.
        seed: seed of the training; default: the recipe's.
        average: how many of the last epoch checkpoints are averaged; default: the recipe's.

    Raises:
        OptionError: a value that is not possible; the message names it.
    """
    if gpus is None:
        gpus = 1 if device == "cpu" else recipe.gpus
    if gpus < 1 or (device == "cpu" and gpus != 1):
        raise OptionError(f"--gpus {gpus}: at least 1, and 1 with --device cpu")
    sizes, times = recipe.per_gpu(gpus)
    training: dict[str, Any] = dict(sizes)
    evaluation = {}
    if seed is not None:
        if not 0 <= seed <= MOST_SEED:
            raise OptionError(f"--seed {seed}: from 0 to {MOST_SEED}")
        training["seed"] = seed
    if device == "cpu":
        training |= {"cpu": True, "fp16": False}
    if average is not None:
        if "average" not in recipe.evaluation:
            checkpoint = recipe.evaluation["checkpoint"].value
            raise OptionError(f"--average: {recipe.name} evaluates {checkpoint}, not an average")
        if average < 1:
            raise OptionError(f"--average {average}: at least 1")
        evaluation["average"] = average
        training["keep_last_epochs"] = max(average, recipe.training["keep_last_epochs"].value)
    return replace(
        recipe,
        gpus=gpus,
        times=times,
        training=_changed(recipe.training, training),
        evaluation=_changed(recipe.evaluation, evaluation),
    )


def _changed(settings: SourcedValues, given: dict[str, Any]) -> SourcedValues:
    """``settings`` with those of the ``given`` values that differ from them."""
    same = [option for option in given if option in settings and settings[option].value == given[option]]
    return settings | by(GIVEN, **{option: value for option, value in given.items() if option not in same})


def sources(recipe: Recipe, data: str | None = None) -> str:
    """What the recipe is and where each of its values comes from, as shell comments.

    Args:
        recipe: the recipe.
        data: the folder that is prepared; default: the recipe's.
    """
    lines = [
        f"# {recipe.name}",
        *_comment(recipe.summary),
        *_comment(f"Data: {recipe.data.prepare.format(data=_folder(recipe, data))}"),
        *_comment(f"update_freq is for {recipe.gpus} GPU{'s' * (recipe.gpus > 1)}; --gpus N adapts it."),
        *(_comment(f"--gpus {recipe.gpus}: {more_tokens(recipe)}") if recipe.times != 1 else ()),
    ]
    groups = {
        f"Model, --arch {recipe.arch}": PRESETS[recipe.arch].settings | recipe.model,
        "Training": recipe.training,
        "Evaluation": recipe.evaluation,
    }
    for title, settings in groups.items():
        lines.append(f"#\n# {title}")
        for source in dict.fromkeys(setting.source for setting in settings.values()):
            of_source = [f"{option} {value}" for option, (value, other) in settings.items() if other == source]
            lines += _comment(f"{source}: {', '.join(of_source)}", indent="  ")
    return "\n".join(lines) + "\n"


def more_tokens(recipe: Recipe) -> str:
    """The note for a recipe whose batches cannot be divided."""
    return f"an update sees {float(recipe.times):.3g} times the recipe's tokens"


def commands(
    recipe: Recipe,
    data: str | None = None,
    save_dir: str | None = None,
    train_options: Sequence[str] = (),
) -> str:
    """The commands with every value.

    Args:
        recipe: the recipe, as it is or :func:`adapted`.
        data: the folder that ``fairseq-train`` reads; default: ``data-bin/DATA``.
        save_dir: where checkpoints and scores are written; default: ``checkpoints/NAME``, followed by a changed seed
            and the changes of ``train_options``, so that no training resumes another.
        train_options: options that are appended to ``fairseq-train`` and win there.

    Raises:
        OptionError: one of ``train_options`` that the later commands would not follow.
    """
    for option in ("--save-dir", "--cpu", "--fp16"):
        if any(word.partition("=")[0] == option for word in train_options):
            raise OptionError(f"--train-options {option}: give --save-dir and --device before --train-options")
    training, evaluation = values(recipe.training), values(recipe.evaluation)
    precision = _flags({option: training.get(option, False) for option in ("cpu", "fp16")})
    data = _folder(recipe, data)
    save = shlex.quote(_save_dir(recipe, train_options) if save_dir is None else save_dir)

    steps = [_train(recipe, training, train_options, data, save)]
    count, checkpoint = evaluation.pop("average", 0), evaluation.pop("checkpoint", "checkpoint_average.pt")
    if count:
        steps.append([f"fairseq-ext average --inputs {save} --last {count} --output {save}/{checkpoint}"])
    evaluate = {"language_modeling": _evaluate_language_model}.get(training["task"], _generate)
    if training["task"] == "captioning":  # else fairseq-generate would take it for translation
        evaluation = {"task": training["task"], **evaluation}
    steps.append(evaluate(checkpoint, evaluation, precision, data, save))
    steps.append([recipe.data.score.format(data=data, save=save)])
    # joined by &&, so that a step that fails ends the pasted commands, and no older checkpoint is scored
    return " &&\n".join(" \\\n    ".join(filter(None, step)) for step in steps) + "\n"


def _folder(recipe: Recipe, data: str | None) -> str:
    return shlex.quote(recipe.data.folder if data is None else data)


def _save_dir(recipe: Recipe, train_options: Sequence[str]) -> str:
    seed, source = recipe.training["seed"]
    changes = [*([f"seed-{seed}"] if source == GIVEN else []), *train_options]
    words = re.sub(r"[^\w.+-]+", "-", "-".join(changes).replace("--", "-")).strip("-")
    if len(words) > WORDS:
        words = f"{words[:WORDS]}-{hashlib.sha256(shlex.join(changes).encode()).hexdigest()[:8]}"
    return "-".join(filter(None, (f"checkpoints/{recipe.name}", words)))


def _train(recipe: Recipe, training: dict[str, Any], train_options: Sequence[str], data: str, save: str) -> list[str]:
    by_section = [
        _flags({option: training[option] for option in options if option in training}) for options in SECTIONS.values()
    ]
    model = f"--arch {recipe.arch} {_flags(values(recipe.model))}".rstrip()
    first = f"fairseq-train {data} {USER_DIR} --save-dir {save}"
    if not training.get("cpu"):  # else fairseq would use all GPUs that it sees
        first += f" --distributed-world-size {recipe.gpus}"
    return [first, model, *by_section, shlex.join(train_options)]


def _generate(checkpoint: str, options: dict[str, Any], precision: str, data: str, save: str) -> list[str]:
    first = f"fairseq-generate {data} {USER_DIR} --path {save}/{checkpoint} --gen-subset test"
    return [first, f"{_flags(options)} {precision}".rstrip(), f"> {save}/generate.txt"]


def _evaluate_language_model(
    checkpoint: str, options: dict[str, Any], precision: str, data: str, save: str
) -> list[str]:
    first = f"fairseq-eval-lm {data} {USER_DIR} --path {save}/{checkpoint} --gen-subset test"
    return [first, f"{_flags(options)} {precision}".rstrip(), f"> {save}/eval.log 2>&1"]


def _flags(options: dict[str, Any]) -> str:
    """``--option value``; ``True`` is a flag alone, ``False`` is left out."""
    words = []
    for option, value in options.items():
        if value is not False:
            words.append(flag(option))
        if not isinstance(value, bool):
            words.append(shlex.quote(str(value)))
    return " ".join(words)


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        width=118,
        initial_indent=f"# {indent}",
        subsequent_indent=f"# {indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )

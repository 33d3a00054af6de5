"""A recipe as the commands that a user pastes: train, average, translate or evaluate, score."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from typing import Any

from fairseq_ext.recipes.presets import PRESETS
from fairseq_ext.recipes.recipe import Recipe, values
from fairseq_ext.recipes.settings import SECTIONS
from fairseq_ext.training.errors import OptionError

__all__ = ["commands", "sources"]

USER_DIR = '--user-dir "$(fairseq-ext user-dir)"'


def sources(recipe: Recipe) -> str:
    """What the recipe is and where each of its values comes from, as comments of a shell."""
    lines = [
        f"# {recipe.name}",
        *_comment(recipe.summary),
        *_comment(f"Data: {recipe.data.prepare.format(data=recipe.data.folder)}"),
        *_comment(f"update_freq is for {recipe.gpus} GPU{'s' * (recipe.gpus > 1)}; --gpus N adapts it."),
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


def commands(
    recipe: Recipe,
    data: str | None = None,
    save_dir: str | None = None,
    gpus: int | None = None,
    device: str = "cuda",
    seed: int | None = None,
    average: int | None = None,
    train_options: Sequence[str] = (),
) -> str:
    """The commands with every value; the paths that are not given are ``data-bin/DATA`` and ``checkpoints/NAME``.

    Args:
        recipe: whose.
        data: what ``fairseq-train`` reads.
        save_dir: where checkpoints and scores are written.
        gpus: how many train; default: the recipe's, or 1 on a CPU. ``update_freq`` follows.
        device: ``"cuda"`` or ``"cpu"``, which trains in single precision.
        seed: default: the recipe's.
        average: how many of the last epoch checkpoints are averaged; default: the recipe's.
        train_options: appended to ``fairseq-train``, where they win.

    Raises:
        OptionError: names the value that cannot be.
    """
    if gpus is None:
        gpus = 1 if device == "cpu" else recipe.gpus
    _refuse(recipe, gpus, device, average, train_options)
    training, evaluation = values(recipe.training), values(recipe.evaluation)
    training["update_freq"] = recipe.update_freq(gpus)
    training["seed"] = training["seed"] if seed is None else seed
    if average is not None:
        evaluation["average"] = average
        training["keep_last_epochs"] = max(average, training["keep_last_epochs"])
    if device == "cpu":
        training["fp16"] = False
    precision = "--cpu" if device == "cpu" else "--fp16" if training["fp16"] else ""
    data = shlex.quote(recipe.data.folder if data is None else data)
    save = shlex.quote(f"checkpoints/{recipe.name}" if save_dir is None else save_dir)

    steps = [_train(recipe, training, "--cpu" * (device == "cpu"), train_options, data, save)]
    count, checkpoint = evaluation.pop("average", 0), evaluation.pop("checkpoint", "checkpoint_average.pt")
    if count:
        steps.append([f"fairseq-ext average --inputs {save} --last {count} --output {save}/{checkpoint}"])
    evaluate = {"translation": _generate, "language_modeling": _evaluate_language_model}[training["task"]]
    steps.append(evaluate(checkpoint, evaluation, precision, data, save))
    steps.append([recipe.data.score.format(data=data, save=save)])
    # joined, so that what is pasted ends with the step that fails instead of scoring an older checkpoint
    return " &&\n".join(" \\\n    ".join(filter(None, step)) for step in steps) + "\n"


def _refuse(recipe: Recipe, gpus: int, device: str, average: int | None, train_options: Sequence[str]) -> None:
    if gpus < 1 or (device == "cpu" and gpus != 1):
        raise OptionError(f"--gpus {gpus}: at least 1, and 1 with --device cpu")
    if average is not None and "average" not in recipe.evaluation:
        raise OptionError(f"--average: {recipe.name} evaluates {recipe.evaluation['checkpoint'].value}, not an average")
    if average is not None and average < 1:
        raise OptionError(f"--average {average}: at least 1")
    for option in ("--save-dir", "--cpu", "--fp16"):  # the later commands would not follow
        if any(word.partition("=")[0] == option for word in train_options):
            raise OptionError(f"--train-options {option}: give --save-dir and --device before --train-options")


def _train(
    recipe: Recipe, training: dict[str, Any], device: str, train_options: Sequence[str], data: str, save: str
) -> list[str]:
    by_section = [
        _flags({option: training[option] for option in options if option in training}) for options in SECTIONS.values()
    ]
    model = f"--arch {recipe.arch} {_flags(values(recipe.model))}".rstrip()
    first = f"fairseq-train {data} {USER_DIR} --save-dir {save}"
    return [first, model, *by_section, device, shlex.join(train_options)]


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
            words.append(f"--{option.replace('_', '-')}")
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

"""The ``fairseq-ext`` command: the plugin, what it registers, whether it works; recipes, averaging, programs."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fairseq_ext import __version__, register
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.extras import missing_package
from fairseq_ext.training.interruption import run_command
from fairseq_ext.training.options import flag
from fairseq_ext.training.progress import Reporting, reporting, say

__all__ = ["main"]

USER_DIR = Path(__file__).resolve().parent

# Commands that parse what follows themselves.
PROGRAMS = {
    "captions": (".captions.__main__", "Captions of images: prepare data, score what was generated."),
    "translate": (".translate.command", "Translate a text with a trained model, line for line."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 1 where ``doctor`` finds a problem, or 130 after Ctrl-C.

    Raises:
        InputError: bad input, or a package that is not installed; ends the program with code 2.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    return run_command(lambda: _run(words))


def _run(words: list[str]) -> int:
    try:
        if words and words[0] in PROGRAMS:
            with _quiet():
                return importlib.import_module(PROGRAMS[words[0]][0], __package__).main(words[1:]) or 0
        args = _parser().parse_args(words)
        with _quiet():
            return args.run(args)
    except ModuleNotFoundError as error:
        raise missing_package(error, "fairseq") or error from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fairseq-ext", description="Companion of the fairseq_ext plugin.")
    parser.add_argument("--version", action="version", version=f"fairseq-ext {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, **options: Any
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary, **options)
        sub.set_defaults(run=run)
        return sub

    command("user-dir", _user_dir, 'Print the path for fairseq: --user-dir "$(fairseq-ext user-dir)".')
    doctor = command(
        "doctor",
        _doctor,
        "Print what is installed, what this machine can do, and what is wrong; exit code 1 if something is, else 0.",
        epilog="a problem is a version that does not work here, a core package that is missing, a fairseq that is "
        "broken, a folder that cannot be written, a card that torch cannot use. An extra that is not complete is one "
        "where it is named: fairseq-ext doctor fairseq graph",
    )
    doctor.add_argument(
        "extras", nargs="*", metavar="EXTRA", help="extras that must be complete: fairseq, graph, vl, ..."
    )
    doctor.add_argument("--json", action="store_true", help="print JSON with every value and every problem")
    command("list", _list, "Print every architecture with its presets, every criterion and every task.")

    recipe = command(
        "recipe",
        _recipe,
        "Print the commands of a recipe with every value and its source; without a name, list all recipes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  fairseq-ext recipe muse_iwslt_de_en\n"
        "  fairseq-ext recipe iwslt14_de_en/muse --data data-bin/iwslt14 --gpus 2 > muse.sh\n"
        "  fairseq-ext recipe multi30k/gca --device cpu --average 2 --train-options --max-epoch 2",
    )
    add = recipe.add_argument
    add("name", nargs="?", metavar="NAME", help="name of a recipe, or DATA/METHOD")
    add("--data", metavar="DIR", help="folder of the prepared data (default: data-bin/DATA)")
    add(
        "--save-dir",
        metavar="DIR",
        help="folder for checkpoints and scores (default: checkpoints/NAME, with what is changed)",
    )
    add(
        "--gpus",
        type=int,
        metavar="N",
        help="number of GPUs that train; --update-freq and batches follow (default: the recipe's)",
    )
    add(
        "--device", choices=["cuda", "cpu"], help="device to train on; a CPU trains in single precision (default: cuda)"
    )
    add("--seed", type=int, help="seed of the training (default: the recipe's, 1)")
    add(
        "--average",
        type=int,
        metavar="N",
        help="number of last epochs whose checkpoints are averaged (default: the recipe's)",
    )
    add("--yaml", action="store_true", help="print the file of conf/ for fairseq-hydra-train instead")
    add(
        "--train-options",
        nargs=argparse.REMAINDER,
        metavar="OPTION",
        help="options of fairseq-train: all that follows is appended, where it wins",
    )

    average = command(
        "average",
        _average,
        "Average checkpoints of one training run, in float64.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  fairseq-ext average --inputs checkpoints --last 5 --output checkpoints/average.pt\n"
        "  fairseq-ext average --inputs checkpoints --last 10 --by update --upper 50000 --output average.pt\n"
        "  fairseq-ext average --inputs a.pt b.pt --output average.pt\n"
        "  fairseq-ext average --inputs checkpoints/checkpoint_best.pt --ema --output ema.pt",
    )
    add = average.add_argument
    add(
        "--inputs",
        nargs="+",
        required=True,
        metavar="PATH",
        type=Path,
        help="checkpoint files, or one folder (with --last)",
    )
    add(
        "--output",
        required=True,
        metavar="FILE",
        type=Path,
        help="file of the new checkpoint; an older one is replaced whole",
    )
    add("--last", type=int, metavar="N", help="take the N newest checkpoints of the folder")
    forms = "epoch: checkpoint<epoch>.pt (default); update: checkpoint_<epoch>_<update>.pt"
    add("--by", choices=["epoch", "update"], help=f"checkpoints that --last counts. {forms}")
    add("--upper", type=int, metavar="BOUND", help="largest epoch (or update) that --last counts (default: any)")
    add("--ema", action="store_true", help="use the moving average of --store-ema; with one file, extract it")
    Reporting.add_to(average)

    for name, (_, summary) in PROGRAMS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return parser


def _user_dir(args: argparse.Namespace) -> int:
    print(USER_DIR)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from fairseq_ext import doctor

    sections = doctor.examine(args.extras)
    print(doctor.as_json(sections) if args.json else doctor.render(sections))
    return 1 if doctor.problems(sections) else 0


def _list(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("fairseq") is None:
        from fairseq_ext.doctor.fairseq import NOT_INSTALLED

        raise OptionError(NOT_INSTALLED)
    from fairseq.criterions import CRITERION_REGISTRY
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_INV_REGISTRY, MODEL_REGISTRY
    from fairseq.tasks import TASK_REGISTRY

    register()

    def ours(registry: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in registry.items() if value.__module__.split(".")[0] == __package__}

    models, presets = ours(MODEL_REGISTRY), ours(ARCH_CONFIG_REGISTRY)
    others = {"criterions (--criterion)": ours(CRITERION_REGISTRY), "tasks (--task)": ours(TASK_REGISTRY)}
    width = 2 + max(map(len, [*models, *presets, *itertools.chain(*others.values())]))
    print("architectures (--arch)")
    for name, model in models.items():
        print(f"  {name:<{width}}  {_summary(model)}")
        for arch in sorted(presets.keys() & set(ARCH_MODEL_INV_REGISTRY.get(name, [])) - {name}):
            print(f"    {arch:<{width - 2}}  {_summary(presets[arch])}")
    for title, registered in others.items():
        print(title)
        for name, value in registered.items():
            print(f"  {name:<{width}}  {_summary(value)}")
    return 0


def _recipe(args: argparse.Namespace) -> int:
    from fairseq_ext.recipes import RECIPES, find
    from fairseq_ext.recipes.commands import adapted, commands, more_tokens, sources
    from fairseq_ext.recipes.hydra import to_yaml

    def given(*names: str) -> dict[str, Any]:
        return {name: getattr(args, name) for name in names if getattr(args, name) is not None}

    places, values = given("data", "save_dir", "train_options"), given("gpus", "device", "seed", "average")
    if (values or places) and (args.yaml or args.name is None):
        options = ", ".join(flag(name) for name in places | values)
        raise OptionError(f"{options}: no effect {'with --yaml' if args.yaml else 'without the NAME of a recipe'}")
    if args.yaml and args.name is None:
        raise OptionError("--yaml: no effect without the NAME of a recipe")
    if args.name is None:
        width = max(map(len, RECIPES))
        print("\n".join(f"{name:<{width}}  {recipe.alias:<31}  {recipe.summary}" for name, recipe in RECIPES.items()))
        return 0
    recipe = find(args.name)
    if args.yaml:
        print(to_yaml(recipe), end="")
        return 0
    recipe = adapted(recipe, **values)
    steps = commands(recipe, **places)
    if recipe.times != 1:
        print(f"--gpus {recipe.gpus}: {more_tokens(recipe)}", file=sys.stderr)
    print(f"{sources(recipe, args.data)}\n{steps}", end="")
    return 0


def _average(args: argparse.Namespace) -> int:
    from fairseq_ext.checkpoint_averaging import average_checkpoints, last_checkpoints
    from fairseq_ext.training.files import save_atomically

    folders = [path for path in args.inputs if path.is_dir()]
    if folders and len(args.inputs) > 1:
        raise OptionError("--inputs takes either files or one folder")
    if folders and args.last is None:
        raise OptionError(f"--inputs {folders[0]} is a folder: say how many checkpoints with --last N")
    if not folders and not (args.last is None and args.by is None and args.upper is None):
        raise OptionError("--last, --by and --upper choose from a folder, but --inputs are files")
    if not args.output.absolute().parent.is_dir():
        raise OptionError(f"--output: the folder {args.output.absolute().parent} does not exist")

    paths = last_checkpoints(folders[0], args.last, args.by or "epoch", args.upper) if folders else args.inputs
    with reporting(args.quiet):
        save_atomically(average_checkpoints(paths, ema=args.ema), args.output)
        say(f"{args.output}: {'moving average' if args.ema else 'weights'} of {', '.join(map(str, paths))}")
    return 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """fairseq and what it imports log and warn a lot; our own lines say what matters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _summary(thing: object) -> str:
    lines = (getattr(thing, "__doc__", None) or "").strip().splitlines()
    return lines[0] if lines else ""


if __name__ == "__main__":
    sys.exit(main())

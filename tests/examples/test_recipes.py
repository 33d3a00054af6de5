"""The recipe scripts: what they call, with options that fairseq and our tools take."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import fairseq_ext
from examples.translation import prepare as mt
from examples.translation import score
from tests import published
from tests.helpers import ROOT

EXAMPLES = ROOT / "examples"
TRANSLATION = EXAMPLES / "translation"
RECIPES = sorted(TRANSLATION.glob("*/recipe.sh"))


def methods(recipe: Path) -> list[str]:
    line = next(line for line in recipe.read_text().splitlines() if line.startswith("begin "))
    return [name for name in line.split('"')[1].split() if not name.startswith("prepare")]


CASES = [(recipe, method) for recipe in RECIPES for method in methods(recipe)]


@pytest.mark.parametrize("script", [TRANSLATION / "common.sh", *sorted(EXAMPLES.rglob("*.sh"))], ids=str)
def test_scripts_parse(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def shim(folder: Path) -> dict[str, str]:
    """Commands that write down how they were called instead of running."""
    (folder / "bin").mkdir()
    for name in ("fairseq-train", "fairseq-generate", "python"):
        file = folder / "bin" / name
        file.write_text(
            f'#!/bin/bash\n[[ $1 == -c ]] && echo 0 && exit\nprintf "%s\\n" {name} "$@" END >> {folder}/calls\n'
        )
        file.chmod(0o755)
    return {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def calls(folder: Path) -> list[list[str]]:
    return [call.splitlines() for call in (folder / "calls").read_text().split("END\n") if call]


def last_averaged(averages: list[list[str]]) -> int:
    """How many epoch checkpoints ``fairseq-ext average`` takes; 0 where the recipe averages nothing."""
    return int(averages[0][averages[0].index("--last") + 1]) if averages else 0


@pytest.fixture(scope="module")
def plugin() -> None:
    fairseq_ext.register()


@pytest.mark.parametrize(("recipe", "method"), CASES, ids=lambda x: x if isinstance(x, str) else x.parent.name)
def test_recipe_gives_options_that_fairseq_takes(recipe: Path, method: str, tmp_path: Path, plugin: None) -> None:
    from fairseq import options

    env = shim(tmp_path)
    command = [str(recipe), method, str(tmp_path), str(tmp_path / "save"), "--seed", "3"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train, *average, generate, scoring = calls(tmp_path)
    assert train[0] == "fairseq-train" and generate[0] == "fairseq-generate"
    assert all(call[3] == "average" for call in average)
    assert scoring[:3] == ["python", "-m", "examples.translation.score"]
    args = options.parse_args_and_arch(options.get_training_parser(), train[1:])
    assert args.seed == 3 and args.max_tokens > 0, "what the user adds wins"
    assert ("encouraging" in args.criterion) == (method == "encouraging")
    assert args.label_smoothing == 0.1
    evaluation = options.parse_args_and_arch(options.get_generation_parser(), generate[1:])
    score.parser().parse_args(scoring[3:])
    source, values = published.RECIPES.get((recipe.parent.name, method), ("our choice", {}))
    found = {**vars(args), "beam": evaluation.beam, "lenpen": evaluation.lenpen, "lr": args.lr[0]}
    found |= {"update_freq": args.update_freq[0], "average": last_averaged(average)}
    assert {option: found[option] for option in values} == values, source


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda x: x.parent.name)
def test_recipe_prepare_and_errors(recipe: Path, tmp_path: Path) -> None:
    env = shim(tmp_path)
    subprocess.run([str(recipe), "prepare", str(tmp_path), str(tmp_path / "out")], env=env, check=True)
    (call,) = calls(tmp_path)
    assert call[:3] == ["python", "-m", "examples.translation.prepare"]
    mt.parser().parse_args(call[3:])
    bad = (
        ([], "usage: "),
        (["must", str(tmp_path), "x"], "unknown method 'must'"),
        (["muse", "/absent", "x"], "no such folder"),
    )
    for arguments, words in bad:
        done = subprocess.run([str(recipe), *arguments], env=env, capture_output=True, text=True)
        assert done.returncode == 2 and words in done.stderr


def test_the_table_names_recipes_and_methods_that_exist() -> None:
    assert published.RECIPES.keys() <= {(recipe.parent.name, method) for recipe, method in CASES}

"""The recipe scripts: they run the commands of the table of recipes, with what a user adds."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.translation import prepare as mt
from fairseq_ext.recipes import PRESETS, RECIPES, find, values
from fairseq_ext.recipes.commands import adapted, commands
from tests.helpers import ROOT, pasted

EXAMPLES = ROOT / "examples"
TRANSLATION = EXAMPLES / "translation"
SCRIPTS = sorted(TRANSLATION.glob("*/recipe.sh"))
METHODS = {"iwslt14_de_en": "adanorm", "iwslt17_fr_en": "encouraging"}
"""One of each data set that has others than MUSE."""


@pytest.mark.parametrize("script", [TRANSLATION / "common.sh", *sorted(EXAMPLES.rglob("*.sh"))], ids=str)
def test_scripts_parse(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def shim(folder: Path, gpus: int = 0) -> dict[str, str]:
    """Commands that write down how they were called instead of running, and $FAILING fails; but recipes are printed."""
    (folder / "bin").mkdir(exist_ok=True)
    for name in ("fairseq-train", "fairseq-generate", "fairseq-eval-lm", "fairseq-ext", "python", "grep"):
        file = folder / "bin" / name
        file.write_text(
            f"#!/bin/bash\n[[ $1 == -c ]] && echo {gpus} && exit\n"
            f'[[ $1 == recipe || $1 == user-dir ]] && exec {sys.executable} -m fairseq_ext.cli "$@"\n'
            f'printf "%s\\n" {name} "$@" END >> {folder}/calls\n[[ $FAILING != {name} ]] || exit 3\n'
        )
        file.chmod(0o755)
    return {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def calls(folder: Path) -> list[list[str]]:
    return [call.splitlines() for call in (folder / "calls").read_text().split("END\n") if call]


def run(*command: object, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.parent.name)
def test_a_script_runs_the_commands_of_the_recipe(script: Path, tmp_path: Path) -> None:
    name = f"{script.parent.name}/{METHODS.get(script.parent.name, 'muse')}"
    save = tmp_path / "save it"
    done = run(script, name.split("/")[1], tmp_path, save, "--max-update", "7", env=shim(tmp_path))
    assert done.returncode == 0, done.stderr
    recipe = adapted(find(name), device="cpu")
    assert calls(tmp_path) == pasted(commands(recipe, str(tmp_path), str(save), ["--max-update", "7"]))
    assert pasted((save / "commands.sh").read_text()) == calls(tmp_path)
    assert {file.name for file in save.iterdir()} == {"commands.sh", "train.log", "generate.txt"}


def test_the_environment_chooses(tmp_path: Path) -> None:
    given = {"SEED": "3", "AVERAGE": "4"}
    script, save = TRANSLATION / "wmt14_en_de" / "recipe.sh", tmp_path / "save"
    for devices, gpus, expected in (8, {}, 4), (2, {}, 2), (8, {"GPUS": "2"}, 2):
        done = run(script, "muse", tmp_path, save, env={**shim(tmp_path, gpus=devices), **given, **gpus})
        assert done.returncode == 0, done.stderr
        recipe = adapted(find("wmt14_en_de/muse"), gpus=expected, seed=3, average=4)
        assert calls(tmp_path) == pasted(commands(recipe, str(tmp_path), str(save)))
        (tmp_path / "calls").unlink()


@pytest.mark.parametrize("name", ["multi30k/gca", "iwslt14_de_en/adanorm", "enwik8/adanorm", "wikitext103/transformer"])
def test_pasted_commands_end_with_the_step_that_fails(name: str, tmp_path: Path) -> None:
    """Whichever it is, in a shell that goes on after errors, as the one that a user types into."""
    env = shim(tmp_path)
    text = commands(find(name), data=str(tmp_path), save_dir=str(tmp_path))
    programs = [call[0] for call in pasted(text)]
    assert len(set(programs)) == len(programs) >= 3
    for number, program in enumerate(programs):
        assert run("bash", "-c", text, env={**env, "FAILING": program}).returncode == 3
        assert [call[0] for call in calls(tmp_path)] == programs[: number + 1]
        (tmp_path / "calls").unlink()


def test_a_step_that_fails_ends_the_script(tmp_path: Path) -> None:
    env = shim(tmp_path)
    env["FAILING"] = "fairseq-train"
    done = run(TRANSLATION / "multi30k" / "recipe.sh", "gca", tmp_path, tmp_path / "save", env=env)
    assert done.returncode == 3 and [call[0] for call in calls(tmp_path)] == ["fairseq-train"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.parent.name)
def test_bad_input_is_one_line(script: Path, tmp_path: Path) -> None:
    env, method = shim(tmp_path), METHODS.get(script.parent.name, "muse")
    bad = (
        ([], "usage: "),
        ([f"{method[:-1]}t", tmp_path, tmp_path / "x"], f"did you mean {script.parent.name}/{method[:3]}"),
        (["muse", "/absent", tmp_path / "x"], "no such folder"),
    )
    for arguments, words in bad:
        done = run(script, *arguments, env=env)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"bin"}


@pytest.mark.parametrize(
    "prepare", sorted({recipe.data.prepare for recipe in RECIPES.values() if "translation" in recipe.data.prepare})
)
def test_the_printed_preparation_runs_and_fits_the_recipes(prepare: str, tmp_path: Path) -> None:
    """It makes one dictionary for both languages wherever a recipe shares the embeddings of both."""
    recipes = [recipe for recipe in RECIPES.values() if recipe.data.prepare == prepare]
    script, *words = prepare.format(data=tmp_path / "out").replace("TEXT", str(tmp_path)).split()
    assert run(ROOT / script, *words, env=shim(tmp_path)).returncode == 0
    (call,) = calls(tmp_path)
    assert call[:3] == ["python", "-m", "examples.translation.prepare"]
    parser = argparse.ArgumentParser()
    mt.Options.add_to(parser)
    joined = mt.Options.of(parser.parse_args(call[3:])).joined_dictionary
    models = [values(PRESETS[recipe.arch].settings | recipe.model) for recipe in recipes]
    assert any(model.get("share_all_embeddings", False) for model in models) == joined

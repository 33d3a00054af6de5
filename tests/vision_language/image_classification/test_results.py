"""Which results below an experiment are one figure: those of several models that were made alike."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fairseq_ext.training.errors import InputError
from vision_language.image_classification.evaluate import AttackOptions, EvaluationOptions, OodOptions
from vision_language.image_classification.results import MAY_DIFFER, Results

PLACE = {"model": "m/seed1", "data": "shapes", "images": 20}
MADE = {"options": {"split": "test", "crop": "", "limit": 0, "attack_steps": 40}}
NEW = {**MADE, "inputs": {"model": "2", "data": "d"}, "model": "m/seed2"}


def folder_of(place, first, second, name="attack_pgd"):
    (place / "results.json").write_text(json.dumps({"runs": {"seed1": {}}, "settings": {}}))
    for number, content in enumerate((first, second)):
        out = place / str(number)
        out.mkdir()
        (out / f"{name}.json").write_text(json.dumps(content))
        np.savez(out / f"{name}.npz", logits=np.zeros((2, 2)))
    return place


def changed(content, **options):
    return {**content, "options": {**content["options"], **options}}


FIRST = {**PLACE, **MADE, "inputs": {"model": "1", "data": "d"}}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (FIRST, {**FIRST, **NEW}),
        (FIRST, {**FIRST, **NEW, "data": "moved/shapes"}),
        (FIRST, {**FIRST, **NEW, "inputs": {**NEW["inputs"], "omniglot": "o"}}),
        (FIRST, changed({**FIRST, **NEW}, device="cuda", eval_batch_size=7, epsilons=[0.1])),
    ],
)
def test_several_models_are_one_figure(tmp_path, first, second):
    results = Results(folder_of(tmp_path, first, second))
    assert len(results.json("attack_pgd")) == len(results.arrays("attack_pgd")) == 2


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (FIRST, changed({**FIRST, **NEW}, split="train"), "differ in split, test and train"),
        (FIRST, changed({**FIRST, **NEW}, attack_steps=1), "differ in attack_steps, 40 and 1"),
        (FIRST, {**FIRST, **NEW, "inputs": {"model": "2", "data": "e"}}, "differ in inputs.data, d and e"),
        (FIRST, {**FIRST, **NEW, "images": 10}, "differ in images, 20 and 10"),
        (FIRST, FIRST, "are both of m/seed1: keep one"),
        (FIRST, {**FIRST, "model": "moved/m/seed1"}, "are both of m/seed1: keep one"),
    ],
)
def test_other_results_are_refused(tmp_path, first, second, message):
    with pytest.raises(InputError) as refusal:
        Results(folder_of(tmp_path, first, second))
    files = [tmp_path / number / "attack_pgd.json" for number in "01"]
    assert str(refusal.value).startswith(f"plot: {files[0]} and {files[1]} {message}")


@pytest.mark.parametrize(
    "content", [PLACE, {**PLACE, **MADE}, {**FIRST, "options": []}, {**FIRST, "inputs": {"data": "d"}}, [], None]
)
def test_results_that_do_not_say_how_they_were_made_are_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"1/attack_pgd\.json: not the results of a command"):
        Results(folder_of(tmp_path, FIRST, content))


def test_arrays_without_their_results_are_refused(tmp_path):
    folder_of(tmp_path, FIRST, {**FIRST, **NEW}, "evaluation")
    (tmp_path / "0" / "evaluation.json").unlink()
    with pytest.raises(InputError, match=r"evaluation\.npz: evaluation\.json is not beside it"):
        Results(tmp_path)


def test_options_that_may_differ_are_options():
    kinds = (EvaluationOptions, OodOptions, AttackOptions)
    names = {name for kind in kinds for name in (*kind.__dataclass_fields__, *kind.aliases())}
    assert names >= set(MAY_DIFFER)

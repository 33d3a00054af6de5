"""``results.json``: what it holds, how an experiment goes on after a kill, and what it refuses."""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import os
import statistics
import types
import weakref
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from fairseq_ext import kernels
from fairseq_ext.training import runs as training_runs
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import read_json, write_json
from fairseq_ext.training.runs import run_name, torch_device

Experiment = functools.partial(training_runs.Experiment, device="cpu")
environment = functools.partial(training_runs.environment, device="cpu")
SETTINGS = {"dataset": "PROTEINS", "folds": 10, "rate": 5e-4, "root": Path("data"), "sizes": (128, 64), "tag": None}


def test_results_hold_settings_environment_runs_and_summary(tmp_path):
    experiment = Experiment(tmp_path / "deep" / "out", SETTINGS, packages=("numpy",))
    experiment.add("0", {"accuracy": 0.5, "epochs": 10})
    experiment.add("1", {"accuracy": 1.0, "epochs": 13})
    results = read_json(tmp_path / "deep" / "out" / "results.json")
    assert results["settings"] == {**SETTINGS, "root": "data", "sizes": [128, 64]}
    now = {"environment": environment("numpy")}
    assert results["runs"] == {"0": {"accuracy": 0.5, "epochs": 10, **now}, "1": {"accuracy": 1.0, "epochs": 13, **now}}
    assert results["summary"] == {
        "accuracy": {"mean": 0.75, "std": 0.25, "runs": 2},
        "epochs": {"mean": 11.5, "std": 1.5, "runs": 2},
    }
    assert results["summary"] == experiment.summary()


def test_every_run_is_on_a_line_of_its_own(tmp_path):
    """As only json's encoder in Python lays out values: many long histories took seconds for each run."""
    experiment = Experiment(tmp_path, SETTINGS)
    for seed in range(3):
        history = [{"epoch": epoch, "loss": 0.1 / epoch, "more": [None, {"a": "\u6c11"}]} for epoch in range(1, 5)]
        experiment.add(f"seed{seed}", {"accuracy": seed / 3, "history": history})
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    kept = {"settings": experiment.settings, "runs": experiment.runs, "summary": experiment.summary()}
    assert json.loads(text) == read_json(tmp_path / "results.json") == kept
    (tmp_path / "old.json").write_text(json.dumps(kept, indent=2))  # as earlier versions wrote it
    assert read_json(tmp_path / "old.json") == kept
    lines = [line for line in text.splitlines() if '"history"' in line]
    assert [json.loads(f"{{{line.strip().rstrip(',')}}}") for line in lines] == [
        {name: run} for name, run in experiment.runs.items()
    ]


def test_every_run_keeps_the_environment_that_it_ran_in(tmp_path, monkeypatch):
    Experiment(tmp_path, {}).add("0", {"accuracy": 0.5})
    monkeypatch.setattr("fairseq_ext.training.runs.environment", lambda *packages, device: {"processor": "another"})
    Experiment(tmp_path, {}).add("1", {"accuracy": 1.0})
    runs = read_json(tmp_path / "results.json")["runs"]
    assert runs["0"]["environment"] == environment() and runs["1"]["environment"] == {"processor": "another"}


def test_a_part_that_the_next_run_would_drop_is_refused(tmp_path):
    content = {"settings": {}, "environment": {"processor": "older"}, "runs": {"0": {"accuracy": 0.5}}}
    write_json(tmp_path / "results.json", content)
    with pytest.raises(DataError, match=r"results\.json: holds environment beside settings, runs and summary$"):
        Experiment(tmp_path, {})
    assert read_json(tmp_path / "results.json") == content


def test_the_environment_has_what_figures_depend_on():
    recorded = environment("numpy")
    assert (recorded["torch"], recorded["numpy"]) == (torch.__version__, version("numpy"))
    assert (recorded["threads"], recorded["cores"]) == (torch.get_num_threads(), os.cpu_count())
    assert recorded["processor"] and recorded["python"]
    json.dumps(recorded)


def test_the_environment_names_a_gpu_where_it_computes(tmp_path, monkeypatch):
    """A machine with a GPU that is told to compute on the CPU has measured the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {torch.device(device).index or 0}")
    monkeypatch.setattr(kernels, "why_unused", lambda device: "")
    for device, gpu in (("cpu", None), ("cuda", "card 0"), (torch.device("cuda", 1), "card 1")):
        experiment = training_runs.Experiment(tmp_path / str(device), {}, device=device)
        experiment.add("a", {"accuracy": 0.5})
        assert experiment.runs["a"]["environment"].get("gpu") == gpu


def test_the_environment_of_a_gpu_says_whether_kernels_are_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    monkeypatch.setattr(kernels, "_lacks", lambda device: "")
    monkeypatch.setattr(kernels, "cannot_compile", lambda: "no compiler")
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setattr(training_runs, "version", lambda name: f"version of {name}")
    recorded = training_runs.environment(device="cuda")
    assert recorded["kernels"] == "no compiler" and recorded["triton"] == "version of triton"
    monkeypatch.setattr(kernels, "cannot_compile", lambda: "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recorded = training_runs.environment(device="cuda")
    assert recorded["kernels"] == "used" and "triton" not in recorded
    assert not {"gpu", "kernels", "triton"} & training_runs.environment(device="cpu").keys()
    monkeypatch.setenv(kernels.SWITCH, "off")
    with pytest.raises(OptionError, match="FAIRSEQ_EXT_KERNELS must be 0 or 1, got 'off'"):
        training_runs.environment(device="cuda")


def test_an_experiment_without_a_finished_run_may_change_its_settings(tmp_path):
    assert Experiment(tmp_path, SETTINGS).summary() == {}
    Experiment(tmp_path, {**SETTINGS, "folds": 5}).add("a", {"score": 1.0})
    with pytest.raises(OptionError, match="folds = 5, now folds = 10"):
        Experiment(tmp_path, SETTINGS)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"settings": 1, "runs": {}}', '{"settings": {}}'])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match=r"results\.json: not .*; delete it to start anew$"):
        Experiment(tmp_path, SETTINGS)
    assert (tmp_path / "results.json").read_text() == content


def test_settings_resume_as_they_are_read_back(tmp_path):
    settings = {"shape": [(1, 2)], "folder": Path("out"), "size": (3,)}
    Experiment(tmp_path, settings).add("a", {"score": 1.0, "converged": True})
    assert list(Experiment(tmp_path, settings).summary()) == ["score"]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_summary_is_mean_and_population_deviation(tmp_path_factory, values):
    experiment = Experiment(tmp_path_factory.mktemp("out"), {})
    for number, value in enumerate(values):
        experiment.add(str(number), {"score": value})
    summary = experiment.summary()["score"]
    assert summary["runs"] == len(values)
    assert summary["mean"] == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert summary["std"] == pytest.approx(statistics.pstdev(values), abs=1e-6)


def test_summary_is_of_the_numbers_that_every_run_has(tmp_path):
    experiment = Experiment(tmp_path, {})
    experiment.add("0", {"f1": 1, "note": "text", "curve": [1, 2], "only": 3})
    experiment.add("1", {"f1": 2, "note": "text", "curve": [1, 2], "late": 3})
    assert list(experiment.summary()) == ["f1"]


def test_an_experiment_goes_on_where_it_was(tmp_path):
    Experiment(tmp_path, SETTINGS).add("0", {"accuracy": 0.5})
    experiment = Experiment(tmp_path, SETTINGS)
    assert list(experiment.runs) == ["0"] and experiment.runs["0"]["accuracy"] == 0.5
    experiment.add("1", {"accuracy": 1.0})
    assert Experiment(tmp_path, SETTINGS).summary()["accuracy"] == {"mean": 0.75, "std": 0.25, "runs": 2}


def test_runs_of_another_scheme_are_not_mixed_in(tmp_path):
    Experiment(tmp_path, SETTINGS).add("0/1", {"accuracy": 0.5})
    before = (tmp_path / "results.json").read_bytes()
    name = run_name(repeat=0, fold=1)
    with pytest.raises(OptionError, match=r"results\.json holds the run 0/1, those of now are called repeat0-fold1"):
        Experiment(tmp_path, SETTINGS).complete({name: lambda: pytest.fail("trained")})
    assert (tmp_path / "results.json").read_bytes() == before


def test_complete_trains_what_is_left(tmp_path):
    called = []

    def run(seed):
        called.append(seed)
        if seed == 2 and called.count(2) == 1:
            raise KeyboardInterrupt
        return {"accuracy": seed / 10}

    def runs(count):
        return {f"seed{seed}": functools.partial(run, seed) for seed in range(count)}

    with pytest.raises(KeyboardInterrupt):
        Experiment(tmp_path, SETTINGS).complete(runs(4))
    experiment = Experiment(tmp_path, SETTINGS).complete(runs(4))
    assert called == [0, 1, 2, 2, 3] and experiment.summary()["accuracy"]["mean"] == pytest.approx(0.15)
    assert list(Experiment(tmp_path, SETTINGS).complete(runs(5)).runs) == [f"seed{seed}" for seed in range(5)]
    assert called[5:] == [4]


@pytest.mark.parametrize("place", ["a", "."])
def test_a_finished_run_has_no_checkpoint(tmp_path, place):
    """Of a run that failed it stays; a kill between result and removal is made up for; others are not touched."""
    checkpoint, result = tmp_path / place / "checkpoint.pt", {"accuracy": 1.0}
    foreign = [tmp_path / other / "checkpoint.pt" for other in ("a", "b", ".") if other != place]
    checkpoints = None if place == "a" else tmp_path
    for path in (checkpoint, *foreign):
        path.parent.mkdir(exist_ok=True)
        path.touch()

    def failing():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Experiment(tmp_path, SETTINGS).complete({"a": failing}, checkpoints=checkpoints)
    assert checkpoint.exists()
    for _ in range(2):
        checkpoint.parent.mkdir(exist_ok=True)  # an empty folder of a finished run goes, too
        checkpoint.touch()
        Experiment(tmp_path, SETTINGS).complete({"a": lambda: result}, checkpoints=checkpoints)
        assert all(path.exists() for path in foreign)
        assert not checkpoint.exists() and read_json(tmp_path / "results.json")["runs"]["a"]["accuracy"] == 1.0


def test_a_run_does_not_depend_on_those_before(tmp_path):
    """Neither on their loss scale, which drops where gradients overflow, nor do their models stay in memory."""
    models = []

    def run(accelerator, factor):
        assert not any(earlier() for earlier in models)
        model = torch.nn.Linear(2, 1)
        parallel, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
        scale = accelerator.scaler.get_scale()
        for _ in range(3):
            accelerator.backward(factor * parallel(torch.ones(1, 2)).sum())
            optimizer.step()
            optimizer.zero_grad()
        models.append(weakref.ref(model))
        return {"first": scale, "last": accelerator.scaler.get_scale()}

    def trained(folder, *factors):
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        runs = {f"seed{factor:g}": functools.partial(run, accelerator, factor) for factor in factors}
        return Experiment(folder, {}).complete(runs, accelerator).runs

    both, alone = trained(tmp_path / "both", math.inf, 1.0), trained(tmp_path / "alone", 1.0)
    assert both["seedinf"]["last"] < both["seedinf"]["first"] and alone["seed1"]["last"] > alone["seed1"]["first"]
    assert both["seed1"] == alone["seed1"]


def test_several_processes_do_not_all_train_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    runs = {"a": lambda: {"accuracy": 1.0}}
    with pytest.raises(OptionError, match=r"^this training has one process, got 2 \(WORLD_SIZE\): start it without"):
        Experiment(tmp_path, SETTINGS).complete(runs)
    one = types.SimpleNamespace(is_main_process=True, wait_for_everyone=int, free_memory=int)
    assert list(Experiment(tmp_path, SETTINGS).complete(runs, one).runs) == ["a"]


def test_other_processes_know_the_runs_but_write_nothing(tmp_path):
    other = types.SimpleNamespace(is_main_process=False, wait_for_everyone=int, free_memory=int)
    experiment = Experiment(tmp_path, SETTINGS).complete({"a": lambda: {"accuracy": 1.0}}, other)
    assert experiment.runs["a"]["accuracy"] == 1.0 and not list(tmp_path.iterdir())


def test_order_of_the_settings_does_not_matter(tmp_path):
    Experiment(tmp_path, SETTINGS).add("0", {"accuracy": 0.5})
    assert "0" in Experiment(tmp_path, dict(reversed(SETTINGS.items()))).runs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": 5}, "folds = 10, now folds = 5"),
        ({"rate": 1e-3}, "rate = 0.0005, now rate = 0.001"),
        ({"root": Path("other")}, "root = data, now root = other"),
        ({"sizes": (128,)}, r"sizes = \[128, 64\], now sizes = \[128\]"),
        ({"new": 1}, "new = None, now new = 1"),
        ({"tag": ""}, "tag = None, now tag = "),
    ],
    ids=["number", "float", "path", "tuple", "added", "none"],
)
def test_other_settings_are_refused_by_name(tmp_path, change, message):
    Experiment(tmp_path, SETTINGS).add("0", {"accuracy": 0.5})
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(
        OptionError, match=rf"^--out: .*results.json holds runs with {message}: choose another"
    ) as refusal:
        Experiment(tmp_path, {**SETTINGS, **change})
    assert "\n" not in str(refusal.value)
    assert (tmp_path / "results.json").read_bytes() == before


def test_a_setting_that_is_gone_is_refused(tmp_path):
    Experiment(tmp_path, SETTINGS).add("0", {"accuracy": 0.5})
    with pytest.raises(OptionError, match="holds runs with folds = 10, now folds = None"):
        Experiment(tmp_path, {name: value for name, value in SETTINGS.items() if name != "folds"})


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OptionError, match=r"^--out: cannot write .*file"):
            Experiment(folder, {})


def test_a_run_that_is_no_json_keeps_the_finished_ones(tmp_path):
    experiment = Experiment(tmp_path, {})
    experiment.add("0", {"accuracy": 0.5})
    with pytest.raises(TypeError):
        experiment.add("1", {"accuracy": torch.tensor(0.5)})
    assert list(read_json(tmp_path / "results.json")["runs"]) == ["0"]


def _add_forever(folder: Path) -> None:
    experiment = Experiment(folder, {})
    for number in range(1_000_000):
        experiment.add(str(number % 500), {"accuracy": 0.5, "number": number})


def test_commands_that_share_a_folder_keep_each_others_runs(tmp_path):
    first, second = Experiment(tmp_path, SETTINGS), Experiment(tmp_path, SETTINGS)
    other = Experiment(tmp_path, {**SETTINGS, "folds": 5})
    first.complete({"seed1": lambda: {"accuracy": 0.5}})
    second.complete({"seed2": lambda: {"accuracy": 1.0}})
    stored = read_json(tmp_path / "results.json")
    assert list(stored["runs"]) == ["seed1", "seed2"] and stored["summary"]["accuracy"]["mean"] == 0.75
    assert second.report("accuracy").startswith("accuracy 0.75 ± 0.25\n2 runs")
    with pytest.raises(OptionError, match="holds runs with folds = 10, now folds = 5"):
        other.add("seed3", {"accuracy": 0.0})
    assert read_json(tmp_path / "results.json") == stored


def _add_some(folder: Path, numbers: range) -> None:
    experiment = Experiment(folder, {})
    for number in numbers:
        experiment.add(f"seed{number}", {"accuracy": 0.5})


def test_commands_that_write_at_the_same_time_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    shares = [range(start, 90, 3) for start in range(3)]
    processes = [context.Process(target=_add_some, args=(tmp_path, share)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert not any(process.exitcode for process in processes)
    assert read_json(tmp_path / "results.json")["runs"].keys() == {f"seed{number}" for number in range(90)}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_kill_at_any_time_leaves_whole_results(tmp_path):
    for _ in range(5):
        process = multiprocessing.get_context("fork").Process(target=_add_forever, args=(tmp_path,))
        process.start()
        while process.is_alive() and not (tmp_path / "results.json").exists():
            pass
        process.join(timeout=0.05)
        process.kill()
        process.join()
        results = read_json(tmp_path / "results.json")
        assert results["summary"]["accuracy"]["mean"] == 0.5
        assert len(results["runs"]) == results["summary"]["accuracy"]["runs"]


def test_a_run_keeps_its_own_numbers(tmp_path):
    experiment, run = Experiment(tmp_path, {}), {"accuracy": 0.5}
    experiment.add("0", run)
    run["accuracy"] = math.nan
    assert experiment.summary()["accuracy"]["mean"] == 0.5


def test_the_device_is_that_of_the_option_or_the_best_there_is():
    assert torch_device("cpu") == torch.device("cpu")
    assert torch_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:99", "cpu:x"):
        with pytest.raises(OptionError, match=rf"^--device {name}: "):
            torch_device(name)


def test_a_report_has_the_figures_that_all_runs_have(tmp_path):
    experiment = Experiment(tmp_path, {})
    for seed, accuracy in enumerate((0.5, 0.7)):
        experiment.add(run_name(split=0, seed=seed), {"accuracy": accuracy})
    assert list(experiment.runs) == ["split0-seed0", "split0-seed1"]
    assert experiment.report("accuracy", "loss") == f"accuracy 0.6 ± 0.1\n2 runs: {experiment.file}"

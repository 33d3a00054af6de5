"""What is seen of a command while it runs: bars on a terminal, lines in a log, the rest of several runs, nothing."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from fairseq_ext.training import progress as module
from fairseq_ext.training.loop import Training
from fairseq_ext.training.progress import Parts, progress, reporting, say, warn
from fairseq_ext.training.runs import Experiment


class Clock:
    """The time that tqdm sees, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(capsys) -> list[str]:
    out, err = capsys.readouterr()
    assert not out and "\r" not in err and "\x1b" not in err and "\n\n" not in err
    return err.splitlines()


@pytest.mark.parametrize("manual", [False, True])
def test_a_log_has_a_line_now_and_then(clock, capsys, manual):
    """After ten seconds, then one a minute, and one at the end; each says how much is left."""
    if manual:
        with progress(total=200, desc="images", unit=" images") as bar:
            for _ in range(200):
                clock.now += 1
                bar.update()
    else:
        for _ in progress(range(200), "images", unit=" images"):
            clock.now += 1
    lines = written(capsys)
    assert [line.split(" [")[0] for line in lines] == [
        *("images: 5% 10/200", "images: 35% 70/200", "images: 65% 130/200", "images: 95% 190/200"),
        "images: 100% 200/200",
    ]
    assert "[00:10<03:10," in lines[0]


def test_what_is_short_writes_nothing_into_a_log(clock, capsys):
    for _ in progress(range(9)):
        clock.now += 1
    assert written(capsys) == []


def test_work_that_was_done_before_is_not_counted_as_speed(clock, capsys):
    with progress(total=100, initial=90) as bar:
        clock.now += 10
        bar.update()
        clock.now += 60
        bar.update(6)
    assert ["[00:10<01:30," in line or "[01:10<00:30," in line for line in written(capsys)] == [True, True]


def test_a_terminal_has_a_bar():
    with contextlib.redirect_stderr(Terminal()) as terminal:
        for _ in progress(range(3), "images"):
            pass
    assert re.search(r"\rimages: 100%\|[█#]+\| 3/3", terminal.getvalue())


@pytest.mark.parametrize(("seconds", "shown"), [(0.1, False), (1, True)])
def test_a_bar_that_does_not_stay_does_not_flash_up(clock, seconds, shown):
    with contextlib.redirect_stderr(Terminal()) as terminal:
        for _ in progress(range(3), "valid", leave=False):
            clock.now += seconds
    assert ("valid" in terminal.getvalue()) == shown


def test_lines_beside_a_bar(capsys):
    with progress(total=3):
        say("begins")
        warn("something")
    assert written(capsys) == ["| begins", "warning: something"]


def test_quiet_hides_all_but_warnings():
    with contextlib.redirect_stderr(Terminal()) as terminal:
        with reporting(quiet=True), reporting(quiet=False):  # a command within another one
            assert list(progress(range(3), "images")) == [0, 1, 2]
            with Parts(3) as parts:
                assert list(parts.each("ab")) == ["a", "b"]
            say("begins")
            warn("something")
        assert terminal.getvalue() == "warning: something\n"
        say("again")
    assert terminal.getvalue().endswith("| again\n")


def test_only_the_first_process_writes(capsys, monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    monkeypatch.setattr(module, "FIRST", 0.0)
    with progress(total=3) as bar:
        bar.update()
        say("begins")
        warn("something")
    assert written(capsys) == []


def body(clock, steps, seconds=10.0, stop=None, **options):
    """A run of a training whose steps take ``seconds``."""

    def run():
        training = Training(steps, select="score", **options)
        for step in training:
            clock.now += seconds
            training.log(loss=1.0)
            training.improved({"score": 1.0})
            if step == stop:
                raise KeyboardInterrupt
        return training.record()

    return run


def test_the_rest_of_all_runs_is_estimated_in_the_first_one(tmp_path, clock, capsys):
    """15 runs of 100 seconds, of which two were finished before, and half of the third."""
    for finished in ("seed1", "seed2"):
        Experiment(tmp_path, {}, device="cpu").add(finished, {"score": 1.0})
    resumed = {"folder": tmp_path / "seed3", "settings": {}}
    with contextlib.suppress(KeyboardInterrupt):
        body(clock, 10, seconds=0.0, stop=6, **resumed)()
    runs = {f"seed{seed}": body(clock, 10, **(resumed if seed == 3 else {})) for seed in range(1, 16)}
    Experiment(tmp_path, {}, device="cpu").complete(runs)
    lines = [line for line in written(capsys) if line.startswith("run ")]
    # five of 150 steps were left behind by the kill, and 130 - 5 are to come: 10 seconds each
    assert re.fullmatch(r"run 3 of 15: 17% \[00:10<20:(39|40)\]", lines[0])
    assert re.fullmatch(r"run 4 of 15: 21% \[01:10<19:(39|40)\]", lines[1])
    assert lines[-1] == "run 15 of 15: 100% [20:50<00:00]"


def test_a_run_that_ends_early_is_a_whole_one(tmp_path, clock, capsys):
    runs = {f"seed{seed}": body(clock, 100, patience=2) for seed in range(4)}
    Experiment(tmp_path, {}, device="cpu").complete(runs)
    lines = [line for line in written(capsys) if line.startswith("run ")]
    assert lines[0] == "run 1 of 4: 0% [00:10<1:06:30]" and lines[-1] == "run 4 of 4: 100% [02:00<00:00]"


def test_experiments_within_a_measurement_move_its_bar(tmp_path, clock, capsys):
    Experiment(tmp_path / "2", {}, device="cpu").add("seed0", {"score": 1.0})
    with Parts(2, what="row") as rows:
        for row in rows.each((1, 2)):
            runs = {f"seed{seed}": body(clock, 30) for seed in range(2)}
            Experiment(tmp_path / str(row), {}, device="cpu").complete(runs)
    lines = [line for line in written(capsys) if line.startswith("row ")]
    # a step is 1/120 of all; 90 are to be made
    assert lines[0] == "row 1 of 2: 1% [00:10<19:50]"
    assert lines[-1] == "row 2 of 2: 100% [15:00<00:00]"


def test_a_single_run_has_one_bar(tmp_path, clock, capsys):
    Experiment(tmp_path, {}, device="cpu").complete({"seed1": body(clock, 3, name="seed 1")})
    assert [line.split(" [")[0] for line in written(capsys)] == ["seed 1: 33% 1/3", "seed 1: 100% 3/3"]


def test_a_failed_run_leaves_nothing_behind(tmp_path, clock, capsys):
    runs = {f"seed{seed}": body(clock, 3, stop=2) for seed in range(2)}
    with pytest.raises(KeyboardInterrupt):
        Experiment(tmp_path, {}, device="cpu").complete(runs)
    assert Parts.around() is None

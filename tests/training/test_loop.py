"""The loop of every training: which step counts as best, when it ends, and that a killed one ends the same."""

from __future__ import annotations

import itertools
import math
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fairseq_ext.training import loop
from fairseq_ext.training.checkpoint import Checkpoint, RandomState
from fairseq_ext.training.errors import CheckpointError, OptionError
from fairseq_ext.training.loop import Training, finite, seed_of


def run(training, scores, losses=None):
    """A body without a model: step n gives loss n, or ``losses[n - 1]``, and validates with ``scores[n - 1]``."""
    validated, kept = [], []
    for step in training:
        training.log(loss=float(step) if losses is None else losses[step - 1])
        if training.validates:
            validated.append(step)
            if training.improved({"score": scores[step - 1]}):
                kept.append(step)
    return validated, kept


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7]),
        ({"validate_every": 3}, [3, 6, 7]),
        ({"validate_every": 10}, [7]),
        ({"validate_from": 5}, [5, 6, 7]),
        ({"validate_from": 4, "validate_every": 3}, [6, 7]),
        ({"validate_every": 0, "patience": 1}, []),
    ],
)
def test_steps_that_validate(options, expected):
    assert run(Training(7, select="score", **options), range(7))[0] == expected


@pytest.mark.parametrize(("lower", "kept"), [(False, [1, 3, 5]), (True, [1, 2])])
def test_the_first_of_equals_is_the_best(lower, kept):
    training = Training(6, select="score", lower_is_better=lower)
    assert run(training, [0.3, 0.2, 0.4, 0.4, 0.5, 0.2])[1] == kept
    record = training.record()
    assert (record["best_step"], record["steps"]) == (kept[-1], 6)
    assert record["valid_score"] == {False: 0.5, True: 0.2}[lower]


def test_a_loss_decides_between_equals():
    training, kept = Training(6, select="score", tie="loss"), []
    for step in training:
        training.log(loss=0.0)
        if training.improved({"score": [1, 2, 2, 2, 2, 1][step - 1], "loss": [1, 5, 3, 4, 3, 0][step - 1]}):
            kept.append(step)
    assert kept == [1, 2, 3] and training.record()["best_step"] == 3


def test_the_history_can_end_a_training():
    training = Training(9, select="score", validate_every=2, until=lambda history: history[-1]["score"] >= 3)
    assert run(training, range(1, 10))[0] == [2, 4] and training.record()["steps"] == 4


def test_a_training_that_the_history_ended_is_not_resumed(tmp_path):
    def training():
        return Training(9, select="score", until=lambda history: len(history) == 3, folder=tmp_path)

    assert run(training(), range(9))[0] == [1, 2, 3]
    resumed = training()
    assert run(resumed, range(9))[0] == [] and resumed.record()["steps"] == 3


@pytest.mark.parametrize(
    ("options", "last"),
    [
        ({"patience": 1}, 3),
        ({"patience": 2}, 4),
        ({"patience": 2, "least": 6}, 6),
        ({"patience": 2, "validate_every": 3}, 6),
        ({"patience": 0}, 9),
    ],
)
def test_patience(options, last):
    training = Training(9, select="score", **options)
    run(training, [1, 2, 0, 0, 0, 0, 0, 0, 0])
    assert training.record()["steps"] == last


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 4))
def test_patience_is_that_of_a_plain_loop(scores, patience):
    training = Training(len(scores), select="score", patience=patience)
    run(training, scores)
    best, best_step, step = -1, 0, 0
    for step, score in enumerate(scores, 1):
        if score > best:
            best, best_step = score, step
        if step - best_step >= patience:
            break
    assert (training.record()["steps"], training.record()["best_step"]) == (step, best_step)


def test_history_holds_the_means_since_the_last_entry():
    training = Training(7, select="score", validate_every=3)
    run(training, range(7))
    assert [(e["step"], e["loss"], e["score"]) for e in training.record()["history"]] == [
        (3, 2.0, 2),
        (6, 5.0, 5),
        (7, 7.0, 6),
    ]


def test_a_logged_mean_is_over_all_steps_since_the_last_entry():
    """Of 25 steps, which are read from the device 20 and 5 at a time."""
    training = Training(25, select="score", validate_every=25)
    run(training, range(25), [1.0] * 20 + [6.0] * 5)
    assert training.record()["history"][0]["loss"] == 2.0


def test_logged_numbers_are_not_rounded():
    training = Training(1, select="score")
    run(training, [1], [0.1])
    assert training.record()["history"][0]["loss"] == 0.1


def test_epochs_are_in_the_history_though_not_validated():
    training = Training(4, select="score", unit="epoch", validate_from=3)
    run(training, range(4))
    history = training.record()["history"]
    assert [entry["loss"] for entry in history] == [1.0, 2.0, 3.0, 4.0]
    assert ["score" in entry for entry in history] == [False, False, True, True]
    assert training.record()["best_epoch"] == 4


def test_a_training_without_validation_has_no_best_step():
    training = Training(3, select="score", unit="epoch", validate_every=0)
    run(training, range(3))
    record = training.record()
    assert record.keys() == {"epochs", "seconds_per_epoch", "history"}
    assert [entry["loss"] for entry in record["history"]] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_ends_the_training(bad, tmp_path):
    training = Training(50, select="score", validate_every=50, folder=tmp_path, advice="lower --lr 3")
    with pytest.raises(OptionError, match=r"^step 20: the loss is (nan|inf); lower --lr 3$"):
        run(training, range(50), [1.0] * 5 + [bad] + [1.0] * 44)
    with pytest.raises(OptionError, match=r"^step 1: the validation's score is (nan|inf); "):
        run(Training(2, select="score"), [bad, 1])


@pytest.mark.parametrize("where", ["the loss", "the accelerator"])
@pytest.mark.parametrize(("unit", "total", "waits"), [("step", 50, 3), ("epoch", 3, 3)])
def test_seconds_are_those_of_the_work_of_a_gpu(monkeypatch, where, unit, total, waits):
    """Each launch takes 1 second and its work 10; the device is waited for once for many steps, and at the end."""
    clock, card = {"now": 0.0, "busy until": 0.0, "waits": 0}, torch.device("cuda", 1)

    def wait(device):
        assert device == card
        clock.update(now=max(clock["now"], clock["busy until"]), waits=clock["waits"] + 1)

    class Loss(torch.Tensor):
        device = card

    monkeypatch.setattr(time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    monkeypatch.setattr(Training, "_flush", lambda self: self._recent.clear())
    accelerator = SimpleNamespace(device=card, is_main_process=True, wait_for_everyone=lambda: None)
    options = {"accelerator": accelerator} if where == "the accelerator" else {}
    training = Training(total, unit=unit, select="score", validate_every=0, **options)
    monkeypatch.setattr(training, "_end_step", lambda bar: None)
    for _ in training:
        clock["now"] += 1
        clock["busy until"] = max(clock["now"], clock["busy until"]) + 10
        training.log(loss=1.0 if options else torch.zeros(()).as_subclass(Loss))
    assert clock["waits"] == waits
    assert training.record()[f"seconds_per_{unit}"] == clock["busy until"] / total


def test_seconds_are_those_of_a_step_that_was_made(monkeypatch):
    """Each takes one; the training ends long before its last step."""
    seconds = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))
    training = Training(100, select="score", patience=2)
    run(training, [3, 2, 1] + [0] * 97)
    record = training.record()
    assert (record["steps"], record["seconds_per_step"]) == (3, 1.0)


class Killed(Exception):
    pass


def learn(folder, kill_at=0, seed=None, settings=None, total=12):
    """A tiny model with dropout: its weights at the end, and the record."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    parts = {"model": model, "optimizer": optimizer, "random": None if seed is not None else RandomState()}
    training = Training(
        total,
        select="score",
        validate_every=4,
        save_every=3,
        seed=seed,
        folder=folder,
        settings=settings or {"lr": 1},
        parts=parts,
    )
    for step in training:
        loss = (model(torch.rand(5, 4)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        training.log(loss=loss)
        if training.validates:
            training.improved({"score": -loss.item()})
        if step == kill_at:
            raise Killed
    record = training.record()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), {
        **{name: value for name, value in record.items() if not name.startswith("seconds")}
    }


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("kill_at", [1, 2, 4, 5, 8, 11, 12])
def test_a_killed_training_ends_where_a_straight_one_ends(tmp_path, kill_at, seed):
    weights, record = learn(tmp_path / "straight", seed=seed)
    with pytest.raises(Killed):
        learn(tmp_path / "killed", kill_at, seed)
    again, resumed = learn(tmp_path / "killed", seed=seed)
    assert torch.equal(weights, again) and resumed == record


def test_a_finished_training_is_not_trained_again(tmp_path):
    weights, record = learn(tmp_path)
    again, resumed = learn(tmp_path)
    assert torch.equal(weights, again) and resumed == record


@pytest.fixture
def saves(monkeypatch):
    """The step of every checkpoint that is saved."""
    steps, save = [], Checkpoint.save

    def noted(self):
        steps.append(self.progress["step"])
        save(self)

    monkeypatch.setattr(Checkpoint, "save", noted)
    return steps


def test_saving_many_short_steps_takes_a_time_that_grows_as_theirs(tmp_path, saves, monkeypatch):
    """Each checkpoint holds the history so far: what all of them hold must not grow as the square of the steps."""
    monkeypatch.setattr(loop, "REPEATED", 0.1)
    monkeypatch.setattr(Checkpoint, "_write", lambda self, path: path.touch())
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    held = []
    for steps in (100, 200):
        saves.clear()
        run(Training(steps, select="score", folder=tmp_path / str(steps)), range(steps))
        assert saves[:10] == list(range(1, 11)) and saves[-1] == steps
        assert all(after - step <= 0.1 * after + 1 for step, after in itertools.pairwise(saves))
        held.append(sum(saves))
    assert held[1] < 2.5 * held[0]  # of squares 4


def test_steps_that_take_long_are_all_saved(tmp_path, saves, monkeypatch):
    monkeypatch.setattr(loop, "REPEATED", 1.0)
    monkeypatch.setattr(Checkpoint, "_write", lambda self, path: path.touch())
    seconds = itertools.count(0, 5)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    run(Training(30, select="score", folder=tmp_path), range(30))
    assert saves == list(range(1, 31))


def test_a_best_model_on_disk_and_an_end_are_saved_at_once(tmp_path, saves, monkeypatch):
    monkeypatch.setattr(loop, "REPEATED", 0.1)
    monkeypatch.setattr(Checkpoint, "_write", lambda self, path: path.touch())
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    run(Training(100, select="score", folder=tmp_path / "a", best=tmp_path), [0] * 51 + [1] + [0] * 48)
    assert 52 in saves and not {51, 53, 99} & set(saves) and saves[-1] == 100
    saves.clear()
    run(Training(100, select="score", folder=tmp_path / "b", patience=51), [0] * 100)
    assert saves[-2] < 51 and saves[-1] == 52


def test_a_training_that_was_killed_between_checkpoints_ends_where_a_straight_one_ends(tmp_path, saves, monkeypatch):
    monkeypatch.setattr(loop, "REPEATED", 0.5)
    monkeypatch.setattr(loop, "REPEATED_SECONDS", math.inf)
    weights, record = learn(tmp_path / "straight")
    saves.clear()
    with pytest.raises(Killed):
        learn(tmp_path / "killed", 11)
    assert saves == [3, 6]
    again, resumed = learn(tmp_path / "killed")
    assert torch.equal(weights, again) and resumed == record


def test_masks_differ_between_steps_and_runs_and_processes():
    seeds = {seed_of(seed, step, rank) for seed in range(4) for step in range(20) for rank in range(3)}
    assert len(seeds) == 4 * 20 * 3
    drawn = []
    for _ in Training(5, select="score", seed=1):
        drawn.append(torch.rand(1).item())
    assert len(set(drawn)) == 5


def test_another_training_is_refused(tmp_path):
    learn(tmp_path)
    with pytest.raises(OptionError, match="trained with other lr"):
        learn(tmp_path, settings={"lr": 2})


def test_nothing_happens_before_the_iteration(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    training = Training(3, select="score", folder=tmp_path)
    assert training.step == 0
    with pytest.raises(CheckpointError, match="damaged, or no checkpoint"):
        next(iter(training))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_what_cannot_be_saved_is_not_trained(tmp_path):
    class Unsaveable:
        def state_dict(self):
            raise CheckpointError("cannot write it")

    steps = []
    with pytest.raises(CheckpointError, match="cannot write it"):
        for step in Training(3, select="score", folder=tmp_path, parts={"model": Unsaveable()}):
            steps.append(step)
    assert not steps


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_no_scores(value):
    scores = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    assert finite(scores) is scores and not len(finite(scores[:0]))
    scores[1, 0] = value
    with pytest.raises(OptionError, match=r"^the training has diverged, as .* are not finite; lower --lr by half$"):
        finite(scores, "lower --lr by half")

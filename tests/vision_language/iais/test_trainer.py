"""What a training does at each step and what it reports, against values computed by hand."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fairseq_ext.training import checkpoint
from fairseq_ext.training.checkpoint import Checkpoint
from fairseq_ext.training.errors import CheckpointError, DataError, OptionError
from tests.vision_language.iais.regions import write_regions
from tests.vision_language.iais.test_train import accelerator, make_step, plain_gradient, run, small, train, weights
from vision_language.iais import objective
from vision_language.iais import train as training
from vision_language.iais.data import Collator, read_splits
from vision_language.iais.encoder import load
from vision_language.iais.evaluate import metrics
from vision_language.iais.negatives import TEXT
from vision_language.iais.objective import TrainingStep


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_regions(tmp_path_factory.mktemp("regions"))


@pytest.fixture(scope="module")
def data(folder):
    return read_splits(folder)


def stepping(step: TrainingStep) -> list[tuple[float, dict[str, torch.Tensor]]]:
    """Step size and gradient of each step of the optimiser, filled as it goes."""
    steps: list = []
    names = {id(value): name for name, value in step.model.named_parameters()}

    def note(optimizer, *_):
        gradients = {
            names[id(value)]: value.grad.double().clone()
            for group in optimizer.param_groups
            for value in group["params"]
            if value.grad is not None
        }
        steps.append((optimizer.param_groups[0]["lr"], gradients))

    step.optimizer.optimizer.register_step_pre_hook(note)
    return steps


def test_adamw_by_hand(folder, data):
    """Warm-up over 2 steps, then down to 0 at the sixth; clipped gradients; decay of some weights alone."""
    step = make_step(small(folder, dropout=0.0, lr=0.02, weight_decay=0.3, clip_norm=0.05), data)
    steps, plain = stepping(step), plain_gradient(step, 0)
    wanted = {name: value.double() for name, value in weights(step.model).items()}
    first = {name: torch.zeros_like(value) for name, value in wanted.items()}
    second = {name: torch.zeros_like(value) for name, value in wanted.items()}
    for number in range(4):
        step(number)
    assert [rate for rate, _ in steps] == pytest.approx([0.01, 0.02, 0.015, 0.01])
    norm = torch.stack([value.double().norm() for value in plain.values()]).norm()
    assert norm > 0.05  # it is clipped
    for name, value in plain.items():
        torch.testing.assert_close(steps[0][1][name], value.double() * 0.05 / norm, rtol=1e-3, atol=1e-7)
    for number, (rate, gradients) in enumerate(steps, 1):
        for name, gradient in gradients.items():
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.98 * second[name] + 0.02 * gradient.square()
            decay = 0.0 if "bias" in name or "LayerNorm.weight" in name else 0.3
            spread = (second[name] / (1 - 0.98**number)).sqrt() + 1e-6
            wanted[name] = wanted[name] * (1 - rate * decay) - rate * first[name] / (1 - 0.9**number) / spread
    for name, value in step.model.named_parameters():
        torch.testing.assert_close(value.detach().double(), wanted[name], rtol=1e-4, atol=1e-6)


class OfProcess:
    """An accelerator that says it is another process."""

    def __init__(self, real, number):
        self.real, self.process_index = real, number

    def __getattr__(self, name):
        return getattr(self.real, name)


@pytest.fixture
def after_step(monkeypatch):
    """Have a function called with the step, its number and what it gave, after each step of a training."""

    def install(function):
        whole = TrainingStep.__call__

        def call(self, number):
            values = whole(self, number)
            function(self, number, values)
            return values

        monkeypatch.setattr(TrainingStep, "__call__", call)

    return install


def test_dropout_is_drawn_anew_for_each_step_process_and_seed(folder, data, tmp_path, monkeypatch):
    seen: list[list[bool]] = []
    build = objective.build

    def listened(*args):
        def note(module, args, output):
            if module.training:
                seen.append((output == 0).flatten()[:200].tolist())

        model, tokenizer = build(*args)
        model.embeddings.dropout.register_forward_hook(note)
        return model, tokenizer

    monkeypatch.setattr(objective, "build", listened)
    monkeypatch.setattr(training, "metrics", lambda *_: {"rsum": 1.0})  # for which all processes would be needed
    options = small(folder, dropout=0.5, lr=0.0, iais="none", negative_size=3, num_steps=3)

    def masks(seed: int, process: int = 0) -> list[list[bool]]:
        seen.clear()
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        training.train(options, data, seed, out, OfProcess(accelerator(), process))
        assert len(seen) == 3 * 4  # passes of 2 of the 4 anchors of each kind
        return seen[::4]

    first = masks(1)
    assert masks(1) == first
    every = [*first, *masks(2), *masks(1, process=1)]
    assert all(one != other for one, other in itertools.combinations(every, 2))
    assert all(0.3 < sum(mask) / len(mask) < 0.7 for mask in every)


def test_recorded_losses_are_the_means_since_the_last_validation(folder, data, tmp_path, after_step):
    values = []
    after_step(lambda step, number, given: values.append({name: float(value) for name, value in given.items()}))
    history = train(small(folder, num_steps=7, validate_every=3), data, tmp_path)["history"]
    assert [entry["step"] for entry in history] == [3, 6, 7]
    for entry, part in zip(history, (slice(3), slice(3, 6), slice(6, 7)), strict=True):
        for name in ("rank_loss", "iais_loss", "iais_weight", "lr"):
            numbers = [value[name] for value in values[part]]
            assert entry[name] == pytest.approx(sum(numbers) / len(numbers))
    assert values[0]["iais_weight"] == pytest.approx(math.exp(-5))  # step 0 of 7


def test_the_model_that_is_reported_is_the_best_one_on_the_test_split(folder, tmp_path, after_step):
    """The last step takes all that was learned away."""
    ends = []

    def forget(step, number, _):
        if number == 5:
            torch.nn.init.zeros_(step.model.rank_output.weight)
            ends.append(weights(step.model))

    after_step(forget)
    options = small(folder, num_steps=6, validate_every=2, valid_images=6, test_images=7, select="ir_r5")
    record = run(options, tmp_path).runs["seed1"]
    history, data = record["history"], read_splits(folder)
    best = max(history, key=lambda entry: entry["ir_r5"])
    assert best is not history[-1] and (record["best_step"], record["valid_ir_r5"]) == (best["step"], best["ir_r5"])
    kept, tokenizer = load(tmp_path / "seed1" / "model")
    last = load(tmp_path / "seed1" / "model")[0]
    last.load_state_dict(ends[0])

    def figures(model, split, images):
        part = training.first_images(data[split], images)
        return metrics(model, part, Collator(tokenizer, None), 64, accelerator())

    wanted = figures(kept, "test", 7)
    for other in (figures(kept, "valid", 6), figures(last, "test", 7), figures(kept, "test", 0)):
        assert all(other[name] != pytest.approx(wanted[name]) for name in ("ir_mean_rank", "isd", "rsum"))
    assert {name: record[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)
    assert figures(kept, "valid", 6)["ir_r5"] == pytest.approx(best["ir_r5"])


RESULTS = {"rsum": [1.0, 3.0, 3.0, 2.0], "ir_r1": [0.4, 0.3, 0.2, 0.1], "tr_r5": [0.1, 0.2, 0.3, 0.4]}


@pytest.mark.parametrize(("select", "step"), [("rsum", 2), ("ir_r1", 1), ("tr_r5", 4)])
def test_the_chosen_metric_picks_the_first_best_step(folder, data, tmp_path, monkeypatch, after_step, select, step):
    calls = iter([0, 1, 2, 3, 0])  # the last of the test split
    monkeypatch.setattr(
        training, "metrics", lambda *_: (lambda k: {name: values[k] for name, values in RESULTS.items()})(next(calls))
    )
    states = []
    after_step(lambda training_step, number, _: states.append(weights(training_step.model)))
    record = train(small(folder, num_steps=4, validate_every=1, select=select, iais="none"), data, tmp_path)
    assert (record["best_step"], record[f"valid_{select}"]) == (step, RESULTS[select][step - 1])
    kept = weights(load(tmp_path / "model")[0])
    assert all(torch.equal(value, states[step - 1][name]) for name, value in kept.items())


def test_candidates_are_random_for_the_first_steps_alone(folder, data, monkeypatch):
    step = make_step(small(folder, random_steps=2, iais="none"), data)
    drawn = []
    hardest = objective.hardest
    monkeypatch.setattr(objective, "hardest", lambda *args: drawn.append(args[2].texts.shape[1] - 1) or hardest(*args))
    for number in range(4):
        step(number)
    assert drawn == [3, 3, 3, 3, 7, 7, 7, 7]


def test_steps_draw_other_anchors_and_other_captions_of_an_image(folder, data):
    sampler = make_step(small(folder), data).sampler
    rows = [sampler.draw(step, kind).texts.tolist() for step in range(4) for kind in (TEXT, "image")]
    assert all(one != other for one, other in itertools.combinations(rows, 2))


class Killed(Exception):
    pass


def test_a_training_saves_before_its_first_step(folder, data, tmp_path, monkeypatch):
    """The untrained model; a checkpoint was written once, and none that holds a step is there yet."""
    steps, proofs = [], []
    prove = Checkpoint.prove
    monkeypatch.setattr(Checkpoint, "prove", lambda self: proofs.append(prove(self)))

    def killed(self, number):
        steps.append(weights(self.model))
        raise Killed

    monkeypatch.setattr(TrainingStep, "__call__", killed)
    with pytest.raises(Killed):
        train(small(folder, max_regions=4, dropout=0.3, max_text_length=9), data, tmp_path)
    assert len(steps) == len(proofs) == 1 and not (tmp_path / "checkpoint.pt").exists()
    model, tokenizer = load(tmp_path / "initial")
    assert model.config.max_regions == 4 and tokenizer.model_max_length == 11  # as evaluation and search will read
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0.3
    assert all(torch.equal(value, weights(model)[name]) for name, value in steps[0].items())


def test_a_resumed_training_keeps_the_untrained_model(folder, data, tmp_path, monkeypatch):
    options, whole = small(folder, num_steps=4, validate_every=2), TrainingStep.__call__
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TrainingStep, "__call__", lambda self, n: whole(self, n) if n < 3 else kill())
        train(options, data, tmp_path)
    before = weights(load(tmp_path / "initial")[0])
    train(options, data, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in weights(load(tmp_path / "initial")[0]).items())


def kill():
    raise Killed


@pytest.mark.parametrize("part", ["save_folder", "checkpoint"])
def test_a_training_that_cannot_save_ends_before_its_first_step(folder, tmp_path, monkeypatch, part):
    def refuse(*_):
        raise CheckpointError("cannot write: no space left")

    if part == "checkpoint":
        monkeypatch.setattr(checkpoint, "save_atomically", refuse)
    else:
        monkeypatch.setattr(training, "save_folder", refuse)
    monkeypatch.setattr(TrainingStep, "__call__", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(CheckpointError, match="no space left"):
        run(small(folder), tmp_path)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_feature_that_is_not_finite_ends_a_training_before_its_first_step(tmp_path, monkeypatch, split):
    folder = write_regions(tmp_path / "data", {"train": 12, "valid": 4, "test": 4}, feature_size=6)
    number = {"train": 12, "valid": 16, "test": 20}[split]
    path = folder / "features" / f"{number}.npy"
    array = np.load(path)
    array[-1, -1] = np.nan
    np.save(path, array)
    monkeypatch.setattr(TrainingStep, "__call__", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(DataError, match=rf"{split}.jsonl:\d+: a feature of image {number} is not a finite number"):
        run(small(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_went_astray_ends_in_one_line(folder, data, tmp_path, after_step):
    after_step(lambda step, *_: torch.nn.init.constant_(step.model.rank_output.bias, math.nan))
    with pytest.raises(CheckpointError, match=r"288 of 288 scores are not a number: .*lower --lr") as error:
        train(small(folder, validate_every=1), data, tmp_path)
    assert "\n" not in str(error.value)


def test_changed_data_is_not_trained_on(tmp_path):
    """Whatever changes, and wherever: finished runs and checkpoints are those of the data they were made of."""
    folder = write_regions(tmp_path / "data", {"train": 12, "valid": 4, "test": 4}, feature_size=6)
    options = small(folder, num_steps=2)
    run(options, tmp_path / "out")
    train(options, read_splits(folder), tmp_path / "alone")

    def last_number(path):
        array = np.load(path)
        array[-1, -1] += 1
        np.save(path, array)

    def swapped(path):
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[1], lines[0], *lines[2:]]))

    def moved_box(path):
        first, rest = path.read_text().split("\n", 1)
        image = json.loads(first)
        image["boxes"][-1][0] -= 0.5
        path.write_text(json.dumps(image) + "\n" + rest)

    changes = [
        (last_number, f"features/{number}.npy", split) for number, split in ((12, "train"), (16, "valid"), (20, "test"))
    ]
    changes += [
        (change, f"{split}.jsonl", split) for change in (swapped, moved_box) for split in ("train", "valid", "test")
    ]
    for change, name, split in changes:
        before = (folder / name).read_bytes()
        change(folder / name)
        with pytest.raises(OptionError, match=rf"--out: .* holds runs with inputs\.{split} = "):
            run(options, tmp_path / "out")
        with pytest.raises(OptionError, match=rf"checkpoint.pt was trained with other inputs\.{split}: choose"):
            train(options, read_splits(folder), tmp_path / "alone")
        (folder / name).write_bytes(before)
    train(options, read_splits(folder), tmp_path / "alone")

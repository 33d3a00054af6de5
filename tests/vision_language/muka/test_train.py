"""Training of teachers and students: what they learn, what moves, what picks the checkpoint, resume after a kill."""

from __future__ import annotations

import json
import math
import random
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from fairseq_ext.losses import encouraging_loss
from fairseq_ext.training import checkpoint
from fairseq_ext.training.accelerator import make_accelerator
from fairseq_ext.training.errors import CheckpointError, DataError, InputError, OptionError
from fairseq_ext.training.files import load_safely, save_atomically
from tests.vision_language.muka.conftest import QUICK
from tests.vision_language.muka.test_architectures import write
from tests.vision_language.muka.texts import WORDS, write_encoder, write_texts
from vision_language.muka import train
from vision_language.muka.baselines import ensemble_probabilities
from vision_language.muka.convergence import refuse_too_few
from vision_language.muka.data import gold_ids, read_splits
from vision_language.muka.fit import fit
from vision_language.muka.models import build_classifier, load_classifier
from vision_language.muka.objectives import amalgamation_objective, teacher_loss, teacher_signals
from vision_language.muka.options import METHODS, AmalgamationOptions, TeacherOptions
from vision_language.muka.targets import (
    amalgamation_loss,
    amalgamation_targets,
    margin_weights,
    union_of_labels,
)
from vision_language.muka.train import amalgamate, train_teacher

FEATURES = ("dfa", "cfl")


def student_options(world, method="muka-soft", **changes):
    teachers = (world.first, world.third if method in FEATURES else world.second)
    folders = () if method == "supervised" else tuple(map(str, teachers))
    settings = {"data": (str(world.data),), "student": str(world.encoder), "teachers": folders, "method": method}
    return AmalgamationOptions(**settings | QUICK | {"epochs": 2} | changes)


def teacher_options(world, **changes):
    return TeacherOptions(**{"data": (str(world.data),), "model": str(world.encoder), "epochs": 2} | QUICK | changes)


@pytest.fixture(scope="module")
def merge(world, tmp_path_factory):
    """Trains a student; teachers are asked once in all tests."""
    cache = tmp_path_factory.mktemp("cache")

    def merge(options, out):
        shared = "" if options.method == "supervised" else str(cache)
        return amalgamate(replace(options, cache=shared), out, Accelerator(cpu=True)).runs[f"seed{options.seed}"]

    return merge


def weights(folder):
    return load_file(folder / "model.safetensors")


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def without_time(record):
    return {name: value for name, value in record.items() if "seconds" not in name}


def test_teachers_know_their_classes(world):
    for folder, labels in ((world.first, ("cooking", "garden")), (world.second, ("music", "sport", "travel"))):
        assert load_classifier(folder).labels == labels
        content = json.loads((folder / "results.json").read_text())
        assert content["summary"]["test_accuracy"]["mean"] > 0.8 and content["settings"]["epochs"] == 8
        assert set(content["runs"]["seed1"]["environment"]) >= {"torch", "transformers", "accelerate"}
        best = max(content["runs"]["seed1"]["history"], key=lambda entry: (entry["accuracy"], -entry["loss"]))
        assert content["runs"]["seed1"]["best_step"] == best["step"]
        assert content["runs"]["seed1"]["valid_accuracy"] == best["accuracy"]


def test_the_student_knows_all_classes(world, merge, tmp_path):
    record = merge(student_options(world, epochs=12, margin=False), tmp_path / "out")
    assert record["classes"] == 5 and record["test_accuracy"] > 0.6
    assert min(record["test_accuracy_by_teacher"]) > 0.3  # each teacher is right on none of the other's
    student = load_classifier(tmp_path / "out")
    assert student.labels == ("cooking", "garden", "music", "sport", "travel")
    splits = read_splits(world.data)
    gold = gold_ids(splits["test"], student.labels)
    batch = student.tokenizer(
        list(splits["test"].texts), padding=True, return_tensors="pt", max_length=16, truncation=True
    )
    accuracy = (student.model(**batch).logits.argmax(-1) == gold).double().mean()
    assert float(accuracy) == pytest.approx(record["test_accuracy"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "results.json",
        "tensorboard",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_cfl_learns_the_classes(world, merge, tmp_path):
    """Of five. It needs longer: at first the gradient of its alignment outweighs that of the distillation."""
    assert merge(student_options(world, "cfl", epochs=16), tmp_path)["test_accuracy"] > 0.4


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(world, merge, tmp_path, method):
    record = merge(student_options(world, method, epochs=3), tmp_path)
    losses = [entry["loss"] for entry in record["history"]]
    assert min(losses[1:]) < losses[0] and record["steps"] == 36
    assert ("test_accuracy_by_teacher" in record) == (method != "supervised")


def test_labels_are_not_used(world, merge, tmp_path):
    """Shuffled labels of training and validation change the measured accuracy and nothing else."""
    merge(student_options(world), tmp_path / "right")
    data = write_texts(tmp_path / "data")
    for split in ("train", "valid"):
        lines = [line.split("\t") for line in (data / f"{split}.tsv").read_text().splitlines()]
        labels = [label for label, _ in lines]
        random.Random(1).shuffle(labels)
        pairs = zip(labels, lines, strict=True)
        (data / f"{split}.tsv").write_text("".join(f"{label}\t{text}\n" for label, (_, text) in pairs))
    merge(student_options(world, data=(str(data),)), tmp_path / "wrong")
    assert equal(weights(tmp_path / "right"), weights(tmp_path / "wrong"))


def test_texts_alone_are_enough(world, merge, tmp_path):
    data = tmp_path / "texts.txt"
    data.write_text("".join(line.split("\t")[1] for line in (world.data / "train.tsv").open()))
    record = merge(student_options(world, data=(str(data),), valid_fraction=0.1), tmp_path / "out")
    assert "valid_loss" in record and not [name for name in record if "accuracy" in name]
    with pytest.raises(DataError, match=r"texts\.txt: no labels"):
        merge(student_options(world, data=(str(data),), select="accuracy"), tmp_path / "selected")
    with pytest.raises(DataError, match=r"texts\.txt: no labels"):
        merge(student_options(world, "supervised", data=(str(data),)), tmp_path / "supervised")


def test_several_data_folders_are_joined(world, merge, tmp_path):
    more = write_texts(tmp_path / "more", train=20, valid=5, test=10, seed=5)
    record = merge(student_options(world, data=(str(world.data), str(more)), epochs=1), tmp_path / "out")
    assert record["train_texts"] == 140


def test_overlapping_teachers(world, merge, tmp_path):
    """A class that two teachers know is one class of the student."""
    options = teacher_options(world, classes=("sport", "garden"), epochs=1)
    train_teacher(options, tmp_path / "overlap")
    teachers = tuple(map(str, (world.first, world.second, tmp_path / "overlap")))
    for method in ("muka-soft", "vkd", "uhc"):
        record = merge(student_options(world, method, teachers=teachers, epochs=1), tmp_path / method)
        assert record["classes"] == 5 and len(record["test_accuracy_by_teacher"]) == 3
    assert load_classifier(tmp_path / "uhc").labels == ("cooking", "garden", "music", "sport", "travel")


def test_dropout_of_the_passes_and_renamed_classes(world, merge, tmp_path):
    """A teacher without dropout is given some; its classes get the names of the options, in the student too."""
    config = json.loads((shutil.copytree(world.first, tmp_path / "first") / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "id2label": {"0": "LABEL_0", "1": "b"}}
    (tmp_path / "first" / "config.json").write_text(json.dumps(config))
    teachers = (str(tmp_path / "first"), str(world.second))
    rename = ("1:LABEL_0=cooking", "b=garden")
    options = student_options(world, teachers=teachers, rename=rename, teacher_dropout=0.1, epochs=1)
    assert "test_accuracy" in merge(options, tmp_path / "out")
    assert load_classifier(tmp_path / "out").labels == ("cooking", "garden", "music", "sport", "travel")


def test_the_loss_of_teachers(world):
    logits, gold = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 2, 1, 0])
    for loss, expected in (
        ({}, F.cross_entropy(logits, gold)),
        ({"loss": "encouraging"}, encouraging_loss(logits, gold, log_end=0.75)),
        ({"loss": "encouraging", "log_end": 0.5}, encouraging_loss(logits, gold, log_end=0.5)),
    ):
        assert torch.equal(teacher_loss(teacher_options(world, **loss))(logits, gold), expected)


@pytest.mark.parametrize("method", METHODS[:-1])
def test_the_loss_of_each_method(world, method):
    """What the objective gives for a batch is the method's loss of that batch's teachers."""
    options = student_options(world, method, temperature=2.0)
    teachers = [load_classifier(folder) for folder in options.teachers]
    union = union_of_labels([teacher.labels for teacher in teachers])
    student = build_classifier(world.encoder, union.names)
    objective = amalgamation_objective(options, student, union, teachers).eval()
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(7, len(teacher.labels), generator=generator) for teacher in teachers]
    scores = torch.rand(7, 2, generator=generator) if method.startswith("muka") else None
    signals = teacher_signals(options, union, logits, scores)
    rows = [4, 2, 6]
    texts = [text for text, *_ in zip(read_splits(world.data)["train"].texts, range(3), strict=False)]
    batch = dict(student.tokenizer(texts, padding=True, return_tensors="pt"))
    loss = objective(batch, [signal[rows] for signal in signals])
    output, outputs = student.model(**batch).logits, [z[rows] for z in logits]
    if scores is not None:
        target = amalgamation_targets(outputs, scores[rows], union, hard=method == "muka-hard", temperature=2.0)
        expected = amalgamation_loss(output, target, 2.0, margin_weights(scores[rows]))
    elif method == "uhc":
        expected = 4 * sum(
            F.kl_div((output[:, part] / 2).log_softmax(-1), (z / 2).softmax(-1), reduction="batchmean")
            for part, z in zip(([0, 1], [2, 3, 4]), outputs, strict=True)
        )
    else:
        target = ensemble_probabilities(outputs, union, 2.0)
        expected = 4 * F.kl_div((output / 2).log_softmax(-1), target, reduction="batchmean")
    if method in FEATURES:
        states = [model(**batch, output_hidden_states=True).hidden_states[1:] for model in objective.teachers]
        own = student.model(**batch, output_hidden_states=True).hidden_states[1:]
        expected = expected + sum(objective.blocks(own, states, batch["attention_mask"]))
        assert len(objective.blocks.blocks) == {"dfa": 2, "cfl": 1}[method]
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("method", FEATURES)
def test_blocks_are_trained_and_teachers_are_not(world, merge, tmp_path, monkeypatch, method):
    options, seen = student_options(world, method, epochs=1), []
    fit = train.fit

    def watched(options, objective, *arguments):
        before = {name: value.clone() for name, value in objective.state_dict().items()}
        frozen = [{name: value.clone() for name, value in t.state_dict().items()} for t in objective.teachers]
        record = fit(options, objective, *arguments)
        after = objective.state_dict()
        seen.extend(name for name in after if name.startswith("blocks") and torch.equal(before[name], after[name]))
        assert all(equal(old, t.state_dict()) for old, t in zip(frozen, objective.teachers, strict=True))
        assert not any(t.training or any(p.grad is not None for p in t.parameters()) for t in objective.teachers)
        assert not [name for name in after if "teachers." in name]
        groups = objective.parameter_groups(options.weight_decay)
        assert [group.get("lr") for group in groups] == [None, None, 1e-3]
        assert sum(len(group["params"]) for group in groups) == len(list(objective.parameters()))
        return record

    monkeypatch.setattr(train, "fit", watched)
    merge(options, tmp_path)
    assert not seen  # no block parameter stayed where it was


def test_hidden_states_need_one_tokenizer(world, merge, tmp_path):
    options = student_options(world, "dfa", teachers=(str(world.first), str(world.second)))
    with pytest.raises(OptionError, match=r"--method dfa: compares hidden states token by token, but .*second and"):
        merge(options, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_picks_the_checkpoint(world, merge, tmp_path, monkeypatch):
    """The best is kept, of equal accuracies that of the lower loss, then the first; its weights are those saved."""
    for select, best in (("loss", 24), ("accuracy", 36)):
        values = iter([(0.5, 0.9), (0.2, 0.7), (0.2, 0.9), (0.3, 0.9)])
        states = []

        def scripted_fit(options, objective, tokens, signals, validate, *arguments, _values=values, _states=states):
            def scripted():
                _states.append({name: value.clone() for name, value in objective.model.state_dict().items()})
                return dict(zip(("loss", "accuracy"), next(_values), strict=True))

            return fit(options, objective, tokens, signals, scripted, *arguments)

        monkeypatch.setattr(train, "fit", scripted_fit)
        record = merge(student_options(world, select=select, epochs=4), tmp_path / select)
        assert record["best_step"] == best
        assert equal(weights(tmp_path / select), states[best // 12 - 1])
        assert record["valid_loss"] == 0.2


CURVES = {
    "flat": ([3.0, 2.0, 1.0, 0.995, 1.2, 0.991, 0.5, 0.4], 6, True),  # at most 1 % lower over three validations
    "falling": ([3.0, 2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4], 8, False),
    "warmup": ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.9], 7, True),  # the first three are of the warm-up
    "tiny": ([3e-4, 2.9e-4, 2.5e-4, 2.1e-4, 1e-4, 0.0], 4, True),  # whatever its share
    "too few": ([3.0, 2.0, 1.0], 3, None),
}
"""Losses of the validations, of which one ends the training, and whether the student has converged then."""


@pytest.mark.parametrize("curve", CURVES)
def test_a_student_trains_until_it_converges(world, merge, tmp_path, monkeypatch, capsys, curve):
    losses, last, verdict = CURVES[curve]
    values = iter(losses)

    def scripted_fit(options, objective, tokens, signals, validate, *arguments):
        return fit(options, objective, tokens, signals, lambda: {"loss": next(values)}, *arguments)

    monkeypatch.setattr(train, "fit", scripted_fit)
    options = student_options(
        world, until_converged=verdict is not None, warmup=0.375 if curve == "warmup" else 0.0, epochs=len(losses)
    )
    record = merge(options, tmp_path)
    assert (record["steps"] / 12, record["converged"]) == (last, verdict)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["runs"]["seed1"]["converged"] is verdict
    said = [line for line in capsys.readouterr().err.splitlines() if "has converged" in line or "not converged" in line]
    begin = {
        False: [f"warning: {tmp_path}: the student has not converged: its validation loss, now 1.4, still fell by"],
        None: [f"| {tmp_path}: 3 validation(s) cannot tell whether"],
    }.get(verdict, [])
    assert [line[: len(start)] for line, start in zip(said, begin, strict=True)] == begin


def test_an_end_that_cannot_come_is_refused_before_any_work(world, merge, tmp_path):
    """The first validation that can end the training must not be its last."""
    options = student_options(world, until_converged=True, epochs=4, warmup=0.0)
    with pytest.raises(OptionError, match=r"^--until-converged: has no effect with 4 validations after the warm-up"):
        merge(options, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for more in ({"epochs": 5}, {"epochs": 5, "warmup": 0.1}, {"validate_every": 10}):
        refuse_too_few(replace(options, **more), 120)
    for fewer in ({"epochs": 5, "warmup": 0.2}, {"validate_every": 12}, {"validate_every": 13}):
        with pytest.raises(OptionError, match=r"^--until-converged"):
            refuse_too_few(replace(options, **fewer), 120)


def interrupted(function, at):
    """``function``, killed after so many calls."""
    calls = []

    def wrapped(*arguments):
        function(*arguments)
        calls.append(arguments)
        if len(calls) == at:
            raise KeyboardInterrupt

    return wrapped


@pytest.mark.parametrize(("method", "at"), [("muka-soft", 2), ("muka-soft", 3), ("dfa", 5)])
def test_a_killed_run_ends_where_a_straight_one_ends(world, merge, tmp_path, monkeypatch, method, at):
    """Killed after a checkpoint within an epoch, of a validation or between two."""
    options = student_options(world, method, save_every=4, validate_every=5)
    straight = merge(options, tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_atomically", interrupted(save_atomically, at))
        with pytest.raises(KeyboardInterrupt):
            merge(options, tmp_path / "killed")
    state = load_safely(tmp_path / "killed" / "checkpoint.pt")
    assert 0 < state["progress"]["step"] < 24 and not (tmp_path / "killed" / "results.json").exists()
    with pytest.raises(OptionError, match=r"checkpoint\.pt was trained with other lr: choose another folder"):
        merge(replace(options, lr=0.5), tmp_path / "killed")
    resumed = merge(options, tmp_path / "killed")
    assert without_time(straight) == without_time(resumed)
    assert equal(weights(tmp_path / "straight"), weights(tmp_path / "killed"))


def test_a_run_killed_at_the_end_is_finished(world, merge, tmp_path, monkeypatch):
    options = student_options(world, epochs=1)
    merge(options, tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr(train, "save_classifier", interrupted(train.save_classifier, 1))
        with pytest.raises(KeyboardInterrupt):
            merge(options, tmp_path / "killed")
    merge(options, tmp_path / "killed")
    assert equal(weights(tmp_path / "straight"), weights(tmp_path / "killed"))


def test_finished_runs_are_kept(world, merge, tmp_path, monkeypatch):
    options = student_options(world, epochs=1)
    first = merge(options, tmp_path / "out")
    monkeypatch.setattr(train, "fit", lambda *_: pytest.fail("trained again"))
    assert merge(options, tmp_path / "out") == first
    with pytest.raises(OptionError, match=r"--out: .* holds runs with method = muka-soft, now method = vkd"):
        merge(student_options(world, "vkd", epochs=1), tmp_path / "out")


def test_results_under_earlier_names_count(world, tmp_path, monkeypatch):
    options = teacher_options(world, epochs=1, num_layers=1, clip_norm=0.5, validate_every=6)
    first = train_teacher(options, tmp_path, Accelerator(cpu=True)).runs
    content = json.loads((tmp_path / "results.json").read_text())
    for earlier, name in (("layers", "num_layers"), ("max_grad_norm", "clip_norm"), ("eval_every", "validate_every")):
        content["settings"][earlier] = content["settings"].pop(name)
    (tmp_path / "results.json").write_text(json.dumps(content))
    monkeypatch.setattr(train, "fit", lambda *_: pytest.fail("trained again"))
    assert train_teacher(options, tmp_path, Accelerator(cpu=True)).runs == first
    with pytest.raises(OptionError, match=r"holds runs with clip_norm = 0\.5, now clip_norm = 1\.0"):
        train_teacher(replace(options, clip_norm=1.0), tmp_path, Accelerator(cpu=True))


def test_changed_inputs_are_not_mixed(world, merge, tmp_path):
    data = write_texts(tmp_path / "data")
    options = student_options(world, data=(str(data),), epochs=1)
    merge(options, tmp_path / "out")
    with open(data / "train.tsv", "a", encoding="utf-8") as file:
        file.write("sport\tanother goal\n")
    with pytest.raises(OptionError, match=r"--out: .* holds runs with inputs"):
        merge(options, tmp_path / "out")


def test_another_model_is_not_overwritten(world, merge, tmp_path):
    write_encoder(tmp_path / "mine")
    before = (tmp_path / "mine" / "config.json").read_bytes()
    with pytest.raises(OptionError, match=r"--out: .*mine holds another model"):
        merge(student_options(world), tmp_path / "mine")
    assert (tmp_path / "mine" / "config.json").read_bytes() == before


def test_half_precision(world, tmp_path):
    AcceleratorState._reset_state(True)  # one process knows one number format
    try:
        options = student_options(world, epochs=4, mixed_precision="bf16", margin=False)
        record = amalgamate(options, tmp_path, make_accelerator("bf16", "cpu")).runs["seed1"]
        losses = [entry["loss"] for entry in record["history"]]
        assert min(losses[1:]) < losses[0] and all(value.dtype == torch.float32 for value in weights(tmp_path).values())
    finally:
        AcceleratorState._reset_state(True)


def test_attention_implementations_train_alike(world, merge, tmp_path):
    """To rounding; and what is saved does not ask for either."""
    for name in ("sdpa", "eager"):
        merge(student_options(world, attn_implementation=name), tmp_path / name)
        assert "attn" not in (tmp_path / name / "config.json").read_text()
    first, second = (weights(tmp_path / name) for name in ("sdpa", "eager"))
    assert not equal(first, second)
    torch.testing.assert_close(first, second, atol=1e-2, rtol=0)


@pytest.mark.parametrize("content", [{"a": 1}, None])
def test_damaged_checkpoints(world, merge, tmp_path, content):
    (tmp_path / "out").mkdir()
    if content is None:
        (tmp_path / "out" / "checkpoint.pt").write_bytes(b"nothing")
    else:
        torch.save(content, tmp_path / "out" / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        merge(student_options(world), tmp_path / "out")


def test_a_loss_that_is_not_finite_ends_the_run(world, tmp_path, monkeypatch):
    monkeypatch.setattr("vision_language.muka.train.teacher_loss", lambda options: lambda z, y: z.sum() * math.nan)
    with pytest.raises(OptionError, match=r"step 12: the train_loss is nan; lower --lr 0\.01"):
        train_teacher(teacher_options(world), tmp_path)
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("sport", "golf")}, "no train text of the classes golf"),
        ({"classes": ("sport",)}, "--classes: at least two different ones are needed, got sport"),
        ({"classes": ("sport", "sport")}, "--classes: at least two different ones are needed"),
        ({"part": "3/3"}, "3 parts of 5 classes: each part needs at least two classes"),
        ({"max_length": 64}, "reads at most 32 tokens, got 64"),
        ({"num_layers": 3}, "--num-layers: "),
    ],
)
def test_refused_teachers(world, tmp_path, changes, message):
    with pytest.raises(InputError) as error:
        train_teacher(teacher_options(world, **changes), tmp_path / "out")
    assert message in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "out").exists()


def refuse(*_):
    raise ValueError("not today")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        ({"student": "save"}, "cannot be saved and read back: not today"),
        ({"student": "layers"}, "--num-layers: "),
        ({"teacher": "dropout"}, r"teacher: a model without dropout, .*--teacher-dropout 0\.1, or use one pass"),
        ({"teacher": "problem"}, "its problem_type is multi_label_classification"),
        ({"student": "attention"}, "--attn-implementation sdpa: .*FNet"),
    ],
    ids=str,
)
def test_what_would_fail_later_is_refused_before_teachers_are_asked(world, tmp_path, monkeypatch, break_it, message):
    """Each of them ends before the first logits are computed."""
    monkeypatch.setattr("vision_language.muka.cache.predict_logits", lambda *_, **__: pytest.fail("too late"))
    changes = {}
    teacher = shutil.copytree(world.first, tmp_path / "teacher")
    config = json.loads((teacher / "config.json").read_text())
    if break_it == {"student": "save"}:
        monkeypatch.setattr("vision_language.muka.trial.save_classifier", refuse)
    elif break_it == {"student": "layers"}:
        changes = {"num_layers": 3}
    elif break_it == {"student": "attention"}:
        changes = {"student": str(write(tmp_path / "fnet", "fnet")), "attn_implementation": "sdpa"}
    elif break_it == {"teacher": "dropout"}:
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    else:
        config |= {"problem_type": "multi_label_classification"}
    (teacher / "config.json").write_text(json.dumps(config))
    options = student_options(world, teachers=(str(teacher), str(world.second)), **changes)
    with pytest.raises(InputError, match=message) as error:
        amalgamate(options, tmp_path / "out", Accelerator(cpu=True))
    assert "\n" not in str(error.value) and not (tmp_path / "out" / "trial").exists()


def test_labels_that_no_teacher_knows(world, merge, tmp_path):
    data = write_texts(tmp_path / "data")
    with open(data / "test.tsv", "a", encoding="utf-8") as file:
        file.write("golf\ta hole\n")
    with pytest.raises(DataError, match=r"test\.tsv: the label 'golf' is not among the 5 known: cooking, garden"):
        merge(student_options(world, data=(str(data),)), tmp_path / "out")
    assert not (tmp_path / "out").exists() and "golf" not in WORDS

"""What happens in each step of a training, and which figures are reported: planted so that no two are equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from fairseq_ext.training.accelerator import adamw
from fairseq_ext.training.checkpoint import Checkpoint
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.files import load_safely
from fairseq_ext.training.settings import Settings
from tests.vision_language.muka.conftest import QUICK
from tests.vision_language.muka.texts import write_classifier, write_encoder, write_texts
from vision_language.muka import fit as fitting
from vision_language.muka import train
from vision_language.muka.data import gold_ids, read_splits
from vision_language.muka.fit import fit
from vision_language.muka.models import build_classifier, load_classifier
from vision_language.muka.objectives import Objective
from vision_language.muka.options import AmalgamationOptions, TeacherOptions
from vision_language.muka.task import amalgamation_task, labelled_task
from vision_language.muka.text_files import Texts
from vision_language.muka.tokens import Tokens
from vision_language.muka.train import amalgamate, train_teacher

STILL = {"epochs": 3, "batch_size": 10, "lr": 1e-12, "max_length": 16}


def options(**changes):
    return TeacherOptions(**{"data": ("unused",), "model": "unused"} | STILL | changes)


def trained(folder, chosen, texts=("a goal",) * 10, dropout=0.0, logit_loss=None):
    """The losses of a training of equal texts, whose steps differ in nothing but the dropout."""
    torch.manual_seed(0)
    encoder = folder / f"encoder{dropout}"
    classifier = build_classifier(encoder if encoder.exists() else write_encoder(encoder, dropout=dropout), ["a", "b"])
    objective = Objective(classifier.model, logit_loss or (lambda logits, _: logits.square().mean()))
    tokens, signals = classifier.tokens(list(texts)), [torch.zeros(len(texts))]
    validate, out = (lambda: {"loss": 1.0}), folder / "out"
    record = fit(chosen, objective, tokens, signals, validate, out, Settings({}), Accelerator(cpu=True))
    return [entry["train_loss"] for entry in record["history"]]


@pytest.fixture
def at_each_step(monkeypatch):
    """Calls a function with the optimiser just before each of its steps, and gives a list of what it returned."""

    def watch(look):
        seen = []

        def watched(*arguments, **settings):
            optimizer = adamw(*arguments, **settings)
            optimizer.register_step_pre_hook(lambda made, *_: seen.append(look(made)))
            return optimizer

        monkeypatch.setattr(fitting, "adamw", watched)
        return seen

    return watch


def weights_of(model):
    return float(sum(value.double().sum() for value in model.state_dict().values()))


def gradient(optimizer):
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return torch.cat([p.grad.flatten() for p in parameters])


def test_dropout_differs_from_step_to_step_and_follows_the_seed(tmp_path):
    first = trained(tmp_path, options(), dropout=0.5)
    assert len({round(loss, 5) for loss in first}) == 3
    for name, seed, same in (("again", 1, True), ("other", 2, False)):
        assert (trained(tmp_path / name, options(seed=seed), dropout=0.5) == first) == same
    still = trained(tmp_path / "without", options())
    assert max(still) - min(still) < 1e-6


def test_reported_losses_are_those_since_the_last_validation(tmp_path):
    values = iter(range(1, 100))

    def scripted(logits, _):
        return next(values) + 0 * logits.sum()

    losses = trained(tmp_path, options(batch_size=2, epochs=2, validate_every=3), logit_loss=scripted)
    assert losses == [2.0, 5.0, 8.0, 10.0]  # means of the steps 1-3, 4-6, 7-9 and 10


def test_gradients_do_not_add_up(tmp_path, at_each_step):
    seen = at_each_step(gradient)
    trained(tmp_path, options(clip_norm=1e6))
    assert len(seen) == 3 and seen[0].norm() > 0
    for later in seen[1:]:
        torch.testing.assert_close(later, seen[0], rtol=1e-3, atol=1e-6)


def test_gradients_are_clipped(tmp_path, at_each_step):
    seen = at_each_step(lambda optimizer: float(gradient(optimizer).norm()))
    trained(tmp_path, options(clip_norm=0.01))
    assert seen == pytest.approx([0.01] * 3, rel=1e-3)


@pytest.mark.parametrize(
    ("warmup", "shares"),
    [
        (0.0, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        (0.2, [0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        (0.11, [0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),  # whole steps, rounded up
        (1.0, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
    ],
)
def test_step_sizes(tmp_path, at_each_step, monkeypatch, warmup, shares):
    """Linear from 0 at the first step to the largest after the warm-up, and to 0 behind the last; and so logged."""
    logged, log = [], fitting.Training.log
    monkeypatch.setattr(fitting.Training, "log", lambda self, **of: logged.append(of["lr"]) or log(self, **of))
    seen = at_each_step(lambda optimizer: optimizer.param_groups[0]["lr"])
    trained(tmp_path, options(batch_size=1, epochs=1, lr=0.5, warmup=warmup), logit_loss=lambda z, _: 0 * z.sum())
    assert seen == logged == pytest.approx([0.5 * share for share in shares])


def test_the_optimizer_is_adamw_and_decays_matrices_alone(tmp_path, at_each_step):
    seen = at_each_step(lambda optimizer: optimizer)
    trained(tmp_path, options(weight_decay=0.3))
    optimizer = seen[0]
    assert type(optimizer) is torch.optim.AdamW
    assert all(group["betas"] == (0.9, 0.999) and group["eps"] == 1e-8 for group in optimizer.param_groups)
    decayed = {tuple(p.shape): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decayed and all(decay == (0.3 if len(shape) > 1 else 0.0) for shape, decay in decayed.items())
    model = build_classifier(tmp_path / "encoder0.0", ["a", "b"]).model
    names = [name for name, p in model.named_parameters() if p.dim() <= 1]
    norms = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    assert all(name.endswith("bias") or name in norms for name in names)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_every_text_is_seen_once_an_epoch(tmp_path, monkeypatch):
    seen, batch = [], Tokens.batch
    monkeypatch.setattr(Tokens, "batch", lambda self, rows, device: (seen.append(rows.tolist()), batch(self, rows))[1])
    trained(tmp_path, options(batch_size=3, epochs=2), texts=["goal " * n for n in range(1, 11)])
    epochs = [[row for rows in part for row in rows] for part in (seen[:4], seen[4:])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2 and epochs[0] != epochs[1]
    trained(tmp_path / "other", options(batch_size=3, epochs=1, seed=2), texts=["goal " * n for n in range(1, 11)])
    assert seen[8:] != seen[:4], "another seed, another order"


def test_new_layers_are_those_of_the_seed(tmp_path):
    encoder = write_encoder(tmp_path / "encoder")
    teachers = [str(write_classifier(tmp_path / name, [name, f"not {name}"])) for name in ("music", "sport")]
    texts = {split: Texts(("a goal", "a song"), ("sport", "music"), split) for split in ("train", "valid")}

    def of_labels(seed):
        return labelled_task(options(seed=seed), str(encoder), ["music", "sport"], texts, F.cross_entropy, "loss")

    def of_teachers(seed):
        chosen = {"student": str(encoder), "teachers": tuple(teachers), "seed": seed, "max_length": 16}
        return amalgamation_task(
            AmalgamationOptions(data=("unused",), **chosen), texts, tmp_path / "out", Accelerator(cpu=True)
        )

    for task in (of_labels, of_teachers):
        first, other, again = (task(seed).classifier.model.classifier.weight for seed in (1, 2, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_weights_of_the_best_step_outlive_a_kill(tmp_path):
    """They are those of the first step of three, of which the last two are made after the kill."""
    encoder, kept = write_encoder(tmp_path / "encoder"), {}

    def train_with(losses):
        torch.manual_seed(0)
        model, left = build_classifier(encoder, ["a", "b"]), iter(losses)
        objective, tokens = (
            Objective(model.model, lambda logits, _: logits.square().mean()),
            model.tokens(["goal"] * 10),
        )

        def validate():
            kept.setdefault(len(kept) + 1, weights_of(model.model))
            return {"loss": next(left)}

        signals, out = [torch.zeros(10)], tmp_path / "out"
        record = fit(options(lr=0.01), objective, tokens, signals, validate, out, Settings({}), Accelerator(cpu=True))
        return record, weights_of(model.model)

    with pytest.raises(StopIteration):
        train_with([0.1])
    record, weights = train_with([0.3, 0.2])
    assert record["best_step"] == 1 and record["valid_loss"] == 0.1
    assert weights == kept[1] and len(set(kept.values())) > 2


PLANTED = {"valid": (0.2, 0.8, 0.4, 0.6), "test": (0.1, 0.5, 0.9, 0.7)}
"""Accuracies after each of four epochs: the best in validation, the last and the best in the test all differ."""


@pytest.mark.parametrize("command", ["train-teacher", "amalgamate", "supervised"])
def test_the_figures_of_a_record(world, tmp_path, monkeypatch, command):
    """Test figures are those of the weights that are best in validation, on the test texts."""
    data = write_texts(tmp_path / "data", train=20, valid=10, test=20)
    sizes, epochs = {10: "valid", 20: "test"}, []

    def planted(model, tokens, batch_size, accelerator, description=""):
        split = sizes[len(tokens)]
        if split == "valid":
            epochs.append(weights_of(model))
        labels = load_labels(model)
        gold = gold_ids(read_splits(data)[split], labels)
        right = round(PLANTED[split][epochs.index(weights_of(model))] * len(gold))
        answers = torch.where(torch.arange(len(gold)) < right, gold, (gold + 1) % len(labels))
        return 5.0 * torch.nn.functional.one_hot(answers, len(labels)).float()

    def load_labels(model):
        return [model.config.id2label[number] for number in range(model.config.num_labels)]

    monkeypatch.setattr(train, "predict_logits", planted)
    common = {"data": (str(data),), "epochs": 4, **QUICK}
    if command == "train-teacher":
        chosen = TeacherOptions(model=str(world.encoder), **common)
        record = train_teacher(chosen, tmp_path / "out", Accelerator(cpu=True)).runs["seed1"]
    else:
        more = (
            {"method": "supervised"} if command == "supervised" else {"teachers": (str(world.first), str(world.second))}
        )
        chosen = AmalgamationOptions(student=str(world.encoder), select="accuracy", **common, **more)
        record = amalgamate(chosen, tmp_path / "out", Accelerator(cpu=True)).runs["seed1"]
    assert len(set(epochs)) == 4
    assert (record["best_step"], record["steps"]) == (4, 8)
    assert record["valid_accuracy"] == pytest.approx(0.8) and record["test_accuracy"] == pytest.approx(0.5)
    assert [entry["accuracy"] for entry in record["history"]] == pytest.approx(PLANTED["valid"])
    saved = load_classifier(tmp_path / "out")
    assert weights_of(saved.model) == epochs[1]
    if command == "amalgamate":  # ten of twenty right, the classes in turn: cooking, garden, music, sport, travel
        assert record["test_accuracy_by_teacher"] == pytest.approx([0.5, 0.5])


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """The options and folder of a teacher that was killed after its first checkpoint, of three."""
    data, encoder = write_texts(tmp_path / "data", train=20, valid=5, test=5), write_encoder(tmp_path / "encoder")
    chosen = TeacherOptions(data=(str(data),), model=str(encoder), epochs=3, **QUICK)
    save = Checkpoint.save

    def save_once(self):
        save(self)
        pytest.exit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_once)
        with pytest.raises(pytest.exit.Exception):
            train_teacher(chosen, tmp_path / "killed", Accelerator(cpu=True))
    assert load_safely(tmp_path / "killed" / "checkpoint.pt")["progress"]["step"] == 2
    return chosen, tmp_path / "killed"


@pytest.mark.parametrize("changed", ["train", "valid", "test", "model"])
def test_changed_inputs_are_refused_on_resume(killed, changed):
    chosen, out = killed
    if changed == "model":
        write_encoder(Path(chosen.model), seed=5)
    else:
        file = Path(chosen.data[0]) / f"{changed}.tsv"
        file.write_text(file.read_text().replace("a", "o", 1))
    with pytest.raises(OptionError, match=r"checkpoint\.pt was trained with other inputs"):
        train_teacher(chosen, out, Accelerator(cpu=True))


def test_a_killed_teacher_ends_where_a_straight_one_ends(killed, tmp_path):
    chosen, out = killed
    resumed = train_teacher(chosen, out, Accelerator(cpu=True)).runs["seed1"]
    straight = train_teacher(chosen, tmp_path / "straight", Accelerator(cpu=True)).runs["seed1"]
    assert resumed["history"] == straight["history"] and resumed["test_accuracy"] == straight["test_accuracy"]
    first, second = (load_classifier(folder).model.state_dict() for folder in (tmp_path / "straight", out))
    assert all(torch.equal(value, second[name]) for name, value in first.items())

"""Training: what a kill leaves behind, what seeds and resumption change, every network, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from fairseq_ext.training.checkpoint import Checkpoint
from fairseq_ext.training.errors import InputError
from vision_language.image_classification import predict, training_step
from vision_language.image_classification import train as training
from vision_language.image_classification.attacks import Attack
from vision_language.image_classification.data import Batches, mean_and_std, pixels_on, read_data
from vision_language.image_classification.evaluate import EvaluationOptions, evaluate
from vision_language.image_classification.image_set import ImageSet
from vision_language.image_classification.long_tail import GROUPS, THIRDS
from vision_language.image_classification.model import load
from vision_language.image_classification.options import NETWORKS, Options
from vision_language.image_classification.predict import predict_logits
from vision_language.image_classification.train import run
from vision_language.image_classification.training_step import lr_factor
from vision_language.image_classification.transforms import Transform


def options_of(data, **changes) -> Options:
    return Options(**{"data": str(data), "epochs": 2, "batch_size": 40, "log_end": 1.0, **changes})


def record_of(out, seed: int = 1) -> dict:
    return json.loads((out / "results.json").read_text())["runs"][f"seed{seed}"]


def outcome(out, seed: int = 1):
    record = record_of(out, seed)
    figures = {name: value for name, value in record.items() if not name.startswith("seconds")}
    return figures, load_file(out / f"seed{seed}" / "model.safetensors")


def same(first, second) -> bool:
    return first[0] == second[0] and all(torch.equal(value, second[1][name]) for name, value in first[1].items())


class Killed(BaseException):
    pass


def test_a_training_that_was_killed_ends_as_if_it_had_not_been(images, tmp_path, monkeypatch):
    options = options_of(images, augment="pad-crop")
    run(options, tmp_path / "straight")

    def save(checkpoint, real=Checkpoint.save):
        real(checkpoint)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoint, "save", save)
        run(options, tmp_path / "killed")
    assert (tmp_path / "killed" / "seed1" / "checkpoint.pt").exists()
    run(options, tmp_path / "killed")
    assert same(outcome(tmp_path / "straight"), outcome(tmp_path / "killed"))
    assert not (tmp_path / "killed" / "seed1" / "checkpoint.pt").exists()


def test_a_seed_gives_the_same_run_alone_and_beside_others(images, tmp_path):
    run(options_of(images, epochs=1), tmp_path / "both", runs=2)
    run(options_of(images, epochs=1, seed=2), tmp_path / "second")
    assert same(outcome(tmp_path / "both", 2), outcome(tmp_path / "second", 2))
    assert not same(outcome(tmp_path / "both", 1), outcome(tmp_path / "both", 2))


def test_initial_weights_and_order_are_those_of_the_seed(images, tmp_path, monkeypatch):
    begun = []

    def classifier(*_):
        begun.append(torch.initial_seed())
        raise Killed

    monkeypatch.setattr(training, "_classifier", classifier)
    chosen = [options_of(images, seed=seed) for seed in (1, 2, 1)]
    for options in chosen:
        with pytest.raises(Killed):
            run(options, tmp_path / f"{len(begun)}")
    assert begun[0] == begun[2] != begun[1]
    images = read_data(chosen[0])["train"]
    orders = [training_step._order(options, images, 0).tolist() for options in chosen]
    assert orders[0] == orders[2] != orders[1]


def test_a_finished_run_is_kept_and_other_settings_are_refused(images, tmp_path, monkeypatch):
    options = options_of(images, epochs=1)
    run(options, tmp_path)
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained again"))
    run(options, tmp_path)
    with pytest.raises(InputError, match=r"--out: .* holds runs with log_end = 1.0, now log_end = 0.5"):
        run(replace(options, log_end=0.5), tmp_path)


def test_runs_of_two_losses_are_pairs_until_the_bonus_starts(images, tmp_path):
    run(options_of(images, loss="cross-entropy", log_end=0.75), tmp_path / "ce")
    run(options_of(images, bonus_from=2), tmp_path / "el")
    plain, bonus = (record_of(tmp_path / name)["history"] for name in ("ce", "el"))
    assert plain[0] == bonus[0] and bonus[1]["train_loss"] < plain[1]["train_loss"]


def test_a_bonus_grows_over_all_epochs(images, tmp_path):
    run(options_of(images, schedule="linear"), tmp_path / "growing")
    run(options_of(images, epochs=1, bonus_weight=0.5), tmp_path / "half")
    assert record_of(tmp_path / "growing")["history"][0] == record_of(tmp_path / "half")["history"][0]


@pytest.mark.parametrize("select_on", ["valid", "test", "last"])
def test_the_selected_epoch_is_saved(images, tmp_path, monkeypatch, select_on):
    accuracies = iter([0.9, 0.1])
    real = training.short_metrics
    monkeypatch.setattr(training, "short_metrics", lambda *args: real(*args) | {"accuracy": next(accuracies)})
    run(options_of(images, select_on=select_on), tmp_path)
    record, classifier = record_of(tmp_path), load(tmp_path / "seed1")
    test = read_data(options_of(images))["test"]
    predicted = predict_logits(classifier, test).argmax(1).numpy()
    assert (predicted == test.labels).mean() == pytest.approx(record["test_accuracy"])
    assert record["best_step"] == record["steps_per_epoch"] and record["selected_on"] == select_on
    assert (record["test_nll"] != record["last_test_nll"]) == (select_on != "last")


def test_without_held_out_images_the_test_set_is_read_at_the_end_only(images, tmp_path, monkeypatch):
    read = []
    real = training.predict_logits
    monkeypatch.setattr(training, "predict_logits", lambda *a, **k: read.append(1) or real(*a, **k))
    options = options_of(images, valid_fraction=0.0, select_on="last")

    def save(checkpoint, real=Checkpoint.save):
        real(checkpoint)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoint, "save", save)
        run(options, tmp_path)
    assert not read
    run(options, tmp_path)
    record = record_of(tmp_path)
    assert len(read) == 1 and record["history"] == [] and record["validated_on"] is None
    assert record["train_images"] == 80 and record["test_accuracy"] == record["last_test_accuracy"]


def test_each_process_reads_its_share_of_the_images(images, tmp_path, monkeypatch):
    run(options_of(images, epochs=1), tmp_path)
    classifier, test = load(tmp_path / "seed1"), read_data(options_of(images))["test"]
    whole = predict_logits(classifier, test, batch_size=3)
    read, rows = [], []
    real = Batches.__getitem__
    monkeypatch.setattr(Batches, "__getitem__", lambda self, i: read.extend(self.batches[i]) or real(self, i))
    monkeypatch.setattr(predict, "gather_object", lambda own: rows.extend(own) or rows)
    for rank in range(3):
        before = len(read)
        accelerator = SimpleNamespace(process_index=rank, num_processes=3)
        logits = predict_logits(classifier, test, batch_size=3, accelerator=accelerator)
        assert 0 < len(read) - before < len(test)
    assert sorted(read) == list(range(len(test)))
    torch.testing.assert_close(logits, whole)


def test_what_is_saved_is_a_model_of_hugging_face(images, tmp_path):
    run(options_of(images, epochs=1), tmp_path)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "seed1").eval()
    classifier = load(tmp_path / "seed1")
    pixels = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(model((pixels - classifier.mean) / classifier.std).logits, classifier(pixels))
    assert classifier.classes == tuple(map(str, range(10)))
    assert json.loads((tmp_path / "seed1" / "preprocessor_config.json").read_text())["size"]["height"] == 28


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_trains_and_is_loaded(colours, images, tmp_path, network):
    grey = network in ("three-convolutions", "large-margin-cnn")
    shape = {"large-margin-cnn": {"width": 4}, "efficientnet-b0": {"image_size": 32}}.get(network, {})
    data = images if grey else colours
    options = options_of(data, network=network, epochs=1, batch_size=12, valid_fraction=0.2, **shape)
    run(options, tmp_path)
    classifier = load(tmp_path / "seed1")
    test = read_data(options)["test"]
    accuracy = (predict_logits(classifier, test).argmax(1).numpy() == test.labels).mean()
    assert accuracy == pytest.approx(record_of(tmp_path)["test_accuracy"])


def test_a_margin_and_cosines_are_loaded_too(images, tmp_path):
    shape = {"network": "large-margin-cnn", "width": 4, "epochs": 1}
    run(options_of(images, margin=2, **shape), tmp_path / "margin")
    assert load(tmp_path / "margin" / "seed1").last_linear().margin == 2
    steps = load_file(tmp_path / "margin" / "seed1" / "model.safetensors")["network.classifier.steps"]
    assert steps == record_of(tmp_path / "margin")["steps"]
    run(options_of(images, cosine_scale=7.0, epochs=1), tmp_path / "cosine")
    assert load(tmp_path / "cosine" / "seed1").last_linear().scale == 7
    run(options_of(images, cosine_scale=7.0, **shape), tmp_path / "both")
    assert load(tmp_path / "both" / "seed1").last_linear().scale == 7


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = ViTConfig(image_size=16, patch_size=8, num_channels=3, num_labels=5, **shape)
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


def test_a_hugging_face_classifier_learns_other_classes(vit, colours, tmp_path):
    run(options_of(colours, network=str(vit), epochs=1), tmp_path / "tuned")
    before, after = load_file(vit / "model.safetensors"), load_file(tmp_path / "tuned" / "seed1" / "model.safetensors")
    name = "vit.embeddings.patch_embeddings.projection.weight"
    assert after["classifier.weight"].shape == (2, 8)
    assert (before[name] - after[name]).abs().max() < 0.05
    run(options_of(colours, network=str(vit), epochs=1, from_scratch=True), tmp_path / "scratch")
    other = load_file(tmp_path / "scratch" / "seed1" / "model.safetensors")
    assert (before[name] - other[name]).abs().max() > 0.02


def test_a_second_stage_learns_the_last_layer_on_even_classes(images, tmp_path):
    tail = {"long_tail": "exponential", "imbalance_factor": 4.0}
    run(options_of(images, epochs=1, **tail), tmp_path / "first")
    second = options_of(images, epochs=1, init=str(tmp_path / "first" / "seed1"), freeze=True, **tail)
    run(second, tmp_path / "second")
    before, after = (load_file(tmp_path / name / "seed1" / "model.safetensors") for name in ("first", "second"))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"network.classifier.weight", "network.classifier.bias"}
    images = read_data(second)["train"]
    begun = training._classifier(second, images).last_linear()
    assert not torch.equal(begun.weight, before["network.classifier.weight"]), "goes on from the first stage's"
    assert not torch.equal(begun.bias, before["network.classifier.bias"])
    drawn = np.bincount(images.labels[training_step._order(second, images, 0)], minlength=10)
    assert drawn.max() - drawn.min() <= 1


def test_a_tail_is_cut_from_the_training_images_alone(images, tmp_path):
    options = options_of(images, long_tail="step", imbalance_factor=3.0, epochs=1, valid_fraction=0.2)
    splits = read_data(options)
    counts = [a + b for a, b in zip(splits["train"].counts, splits["valid"].counts, strict=True)]
    assert len(set(counts[:5])) == len(set(counts[5:])) == 1 and counts[0] // 3 == counts[9]
    assert len(splits["test"]) == 20
    run(options, tmp_path)
    record = record_of(tmp_path)
    assert record["train_counts"] == splits["train"].counts and record["test_many"] is None
    assert len(record["test_class_accuracy"]) == 10
    assert load(tmp_path / "seed1").train_counts == record["train_counts"]
    told = evaluate(EvaluationOptions(model=str(tmp_path / "seed1"), data=str(images), device="cpu"))
    for name in (*GROUPS, *THIRDS):
        assert told[name] == (None if record[f"test_{name}"] is None else pytest.approx(record[f"test_{name}"]))


def test_what_a_tail_keeps_is_drawn_by_its_own_seed(images):
    tail = {"long_tail": "step", "imbalance_factor": 3.0, "valid_fraction": 0.0, "select_on": "last"}
    kept = [
        read_data(options_of(images, subset_seed=subset_seed, seed=seed, **tail))["train"].digest()
        for subset_seed, seed in ((0, 1), (0, 2), (1, 1))
    ]
    assert kept[0] == kept[1] != kept[2]


@pytest.mark.parametrize(("images", "read"), [(30, slice(None)), (20_000, slice(None, None, 2))])
def test_pixels_are_normalised_by_all_images_or_by_an_even_share_of_many(images, read):
    pixels = np.arange(2 * images).reshape(images, 1, 2) % 251 % 97
    everything = ImageSet(pixels.astype(np.uint8), np.zeros(images, dtype=np.int64), ("a", "b"), "made up")
    mean, std = mean_and_std(everything)
    assert mean == pytest.approx([pixels[read].mean() / 255]) and std == pytest.approx([pixels[read].std() / 255])


def test_training_on_attacked_images(images, tmp_path):
    plain = options_of(images, epochs=1)
    run(plain, tmp_path / "plain")
    run(replace(plain, attack="fgsm", epsilon=0.1), tmp_path / "fgsm")
    losses = [record_of(tmp_path / name)["history"][0]["train_loss"] for name in ("plain", "fgsm")]
    assert losses[0] < losses[1]


@pytest.mark.parametrize(
    ("images", "processes", "sizes"),
    [(9, 1, [4, 5]), (8, 1, [4, 4]), (10, 1, [4, 4, 2]), (1, 1, [1]), (11, 2, [4, 7]), (12, 2, [4, 4, 4]), (5, 2, [5])],
)
def test_no_process_has_one_image_alone(images, processes, sizes):
    batches = training_step._batches(np.arange(images), 4, processes)
    assert [len(batch) for batch in batches] == sizes
    assert np.concatenate(batches).tolist() == list(range(images))


@pytest.mark.parametrize(("images", "size"), [(20, 3), (3, 20)])
def test_a_batch_too_small_for_the_processes_is_refused(images, size):
    with pytest.raises(InputError, match=r"^--batch-size must be at least 4, two images for each of the 2 .*, got 3$"):
        training_step._batches(np.arange(images), size, 2)


def test_a_random_start_is_drawn_for_each_image_and_epoch(images, tmp_path, monkeypatch):
    """Whatever its batch: those of an epoch differ from image to image, and those of an image from epoch to epoch."""
    starts, orders, augmented = [], [], []
    real, order = Attack._start, training_step._order

    def batches(*args, augmented_by=augmented, **options):
        augmented_by.append(options.get("augmented"))
        return Batches(*args, **options)

    def start(self, images, numbers, epoch):
        drawn = real(self, images, numbers, epoch)
        starts.extend((int(n), epoch, row.numpy().tobytes()) for n, row in zip(numbers, drawn, strict=True))
        return drawn

    monkeypatch.setattr(Attack, "_start", start)
    monkeypatch.setattr(training_step, "_order", lambda *args: orders.append(order(*args)) or orders[-1])
    monkeypatch.setattr(training_step, "Batches", batches)
    run(options_of(images, attack="pgd", attack_steps=1, seed=3), tmp_path)
    assert augmented == [None, (3, 0), (3, 1)], "as it is tried before the first step, and of each epoch"
    assert [number for number, _, _ in starts] == np.concatenate(orders).tolist()
    assert {epoch for _, epoch, _ in starts} == {1, 2} and len({noise for _, _, noise in starts}) == len(starts)
    assert len(orders) == 2 and orders[0].tolist() != orders[1].tolist()


@pytest.mark.parametrize(
    "options",
    [{"attack": "fgsm", "epsilon": 0.1}, {"attack": "pgd", "attack_steps": 3, "attack_step_size": 0.01}],
)
def test_an_attack_of_training_is_that_of_its_options(options):
    attack = training_step._attack(Options(data="x", seed=3, **options))
    steps = (options.get("attack_steps"), options.get("attack_step_size"))
    assert (attack.name, attack.objective, attack.seed) == (options["attack"], "cross-entropy", 3)
    assert (attack.steps, attack.step_size) == steps


def train_thrice(data, colours, out) -> None:
    """With batch norm and a last batch of 2 images; without it, with weights of classes; with a weight that nothing
    reads, the mask token of a Dinov2.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    for name, options in of_two_processes(data, colours, out / "dinov2").items():
        run(options, out / name, device="cpu")


def of_two_processes(data, colours, dinov2) -> dict[str, Options]:
    tail = {"long_tail": "step", "imbalance_factor": 3.0, "reweight": "both", "beta": 0.9}
    return {
        "norm": options_of(data, network="large-margin-cnn", width=4, batch_size=17, eval_batch_size=5, epochs=1),
        "weights": options_of(data, optimizer="sgd", lr=0.1, **tail),
        "unread": options_of(colours, network=str(dinov2), batch_size=12, epochs=1),
    }


def test_two_processes(images, colours, tmp_path):
    """Figures are those of the model that is saved; weights of classes mean what they mean with one process."""
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    Dinov2ForImageClassification(Dinov2Config(**shape)).save_pretrained(tmp_path / "dinov2")
    debug_launcher(train_thrice, (images, colours, tmp_path), num_processes=2)
    options = of_two_processes(images, colours, tmp_path / "dinov2")
    splits = read_data(options["norm"])
    assert len(splits["train"]) % 17 == 2
    saved = predict_logits(load(tmp_path / "norm" / "seed1"), splits["test"])
    nll = torch.nn.functional.cross_entropy(saved, torch.from_numpy(splits["test"].labels))
    assert record_of(tmp_path / "norm")["test_nll"] == pytest.approx(float(nll), rel=1e-5)

    AcceleratorState._reset_state(reset_partial_state=True)
    for name in ("weights", "unread"):
        run(options[name], tmp_path / f"one-{name}", device="cpu")
        one, two = (record_of(tmp_path / folder)["history"] for folder in (f"one-{name}", name))
        for entries in zip(one, two, strict=True):
            for figure in ("train_loss", "nll"):
                assert entries[0][figure] == pytest.approx(entries[1][figure], rel=1e-4)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("dinov2", "unread/seed1"))
    token, cls = (f"dinov2.embeddings.{name}_token" for name in ("mask", "cls"))
    assert torch.equal(before[token], after[token]) and not torch.equal(before[cls], after[cls])


def test_step_sizes_by_epoch():
    steps = Options(data="x", optimizer="sgd", lr_schedule="steps", lr_steps=(3, 5), warmup_epochs=2, epochs=6)
    assert [lr_factor(steps, epoch) for epoch in range(1, 7)] == pytest.approx([0.5, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = Options(data="x", lr_schedule="cosine", epochs=4)
    assert [lr_factor(cosine, epoch) for epoch in range(1, 5)] == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    # lr .2, 200 epochs: .1 (1 + cos(pi e / 200)), and 0 in the last
    released = Options(data="x", lr=0.2, lr_schedule="cosine-released", epochs=200)
    rates = [released.lr * lr_factor(released, epoch) for epoch in (1, 50, 100, 199)]
    assert rates == pytest.approx([0.1999877, 0.1707107, 0.1, 0.0000123], abs=1e-7)
    assert lr_factor(released, 200) == 0


def test_the_step_size_that_is_logged_is_that_of_the_step(images, tmp_path):
    run(options_of(images, lr=0.01, lr_schedule="steps", lr_steps=(2,)), tmp_path)
    assert [entry["lr"] for entry in record_of(tmp_path)["history"]] == pytest.approx([0.01, 0.001])


def test_an_augmented_image_depends_on_seed_epoch_and_number_alone(images):
    images, transform = read_data(options_of(images))["train"], Transform(28, "pad-crop")

    def pixels(numbers, *augmented):
        return Batches(images, transform, [np.array(numbers)], augmented)[0][0]

    assert torch.equal(pixels([3, 5], 1, 0)[1], pixels([5], 1, 0)[0])
    assert len({pixels([5], 1, epoch).numpy().tobytes() for epoch in range(4)}) > 1
    assert len({pixels([5], seed, 0).numpy().tobytes() for seed in range(4)}) > 1


def test_workers_carry_bytes(images):
    """In float32 a batch would be four times as large; the numbers are those of a division of float32."""
    view = Batches(read_data(options_of(images))["train"], Transform(28), [np.arange(3)])
    assert view[0][0].dtype == torch.uint8
    every = torch.arange(256).to(torch.uint8)
    assert torch.equal(pixels_on(torch.device("cpu"), every), every.float() / 255)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"valid_fraction": 0.0}, "--select-on valid: there are no validation images, with --valid-fraction 0"),
        ({"image_size": 8}, "--image-size: the network cannot take images of 1 x 8 x 8"),
        ({"network": "resnet"}, "--network: 'resnet' is not one of .*; did you mean 'resnet"),
        ({"network": "timm:resnet18"}, "--network timm:resnet18: timm cannot be imported here"),
        (
            {"init": "absent"},
            "absent is not a folder; a model is a folder with config.json, weights and, of text, a token",
        ),
        ({"lr": 1e30}, "is nan; lower --lr 1e"),
        (
            {"long_tail": "step", "imbalance_factor": 1e4},
            r"--imbalance-factor 10000: .* leaves class 5 without an image",
        ),
        ({"long_tail": "step", "largest_class": 99}, "--largest-class 99: the smallest class has"),
    ],
)
def test_refused_trainings(images, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(options_of(images, **changes), tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_a_hold_out_beside_validation_images_is_refused(images, tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.npz").write_bytes((images / f"{split}.npz").read_bytes())
    (tmp_path / "valid.npz").write_bytes((images / "test.npz").read_bytes())
    for changes, option in (({"valid_fraction": 0.2}, "--valid-fraction 0.2"), ({"subset_seed": 1}, "--subset-seed 1")):
        with pytest.raises(InputError, match=f"{option}: has no effect with --data"):
            read_data(options_of(tmp_path, **changes))
    assert len(read_data(options_of(tmp_path))["valid"]) == 20


def test_other_classes_are_refused(images, colours, tmp_path):
    run(options_of(colours, network="resnet32", epochs=1, valid_fraction=0.2), tmp_path / "two")
    with pytest.raises(InputError, match=r"--init: .* has 2 classes, not those of --data"):
        run(options_of(images, init=str(tmp_path / "two" / "seed1")), tmp_path / "ten")


def test_one_class_and_an_empty_class_are_refused(tmp_path):
    pixels = np.zeros((4, 6, 6), dtype=np.uint8)
    for name, labels in (("one", [0, 0, 0, 0]), ("empty", [0, 0, 2, 2])):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            np.savez(tmp_path / name / f"{split}.npz", x=pixels, y=np.array(labels))
    with pytest.raises(InputError, match=r"train\.npz: its images are of one class"):
        run(options_of(tmp_path / "one"), tmp_path / "out")
    with pytest.raises(InputError, match=r"train\.npz: class 1 has no training image"):
        run(options_of(tmp_path / "empty"), tmp_path / "out")

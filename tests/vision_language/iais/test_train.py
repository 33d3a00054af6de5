"""Sampling, schedules, the objective, resume after a kill, and what training starts from."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from fairseq_ext.training.errors import CheckpointError, DataError, InputError, OptionError
from fairseq_ext.training.files import load_safely, read_json
from fairseq_ext.training.flags import Runs
from fairseq_ext.training.pretrained import save_folder
from fairseq_ext.training.runs import Experiment
from tests.helpers import load_golden
from tests.vision_language.iais.regions import tiny_model, tiny_tokenizer, write_regions
from vision_language.iais import evaluate
from vision_language.iais import train as training
from vision_language.iais.alignment import annealing, iais_loss
from vision_language.iais.data import Collator, RegionData, read_splits
from vision_language.iais.encoder import build, learn_tokenizer, load
from vision_language.iais.evaluate import first_images, metrics
from vision_language.iais.hook import IAISHook
from vision_language.iais.model import RegionRetriever
from vision_language.iais.negatives import IMAGE, TEXT, AnchorSampler, PairBatches, hardest
from vision_language.iais.objective import TrainingStep, learning_rate, parameter_groups
from vision_language.iais.options import Options

# A forked process needs no second import of everything.
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_regions(tmp_path_factory.mktemp("regions"))


@pytest.fixture(scope="module")
def data(folder) -> dict[str, RegionData]:
    return read_splits(folder)


def small(folder: Path, **changes) -> Options:
    sizes = {"hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "num_layers": 2, "dropout": 0.1}
    steps = {"num_steps": 6, "warmup_steps": 2, "validate_every": 3, "save_every": 2, "lr": 1e-2}
    candidates = {"negative_size": 7, "hard_negatives": 3, "batch_size": 4, "anchors_per_forward": 2}
    idle = ("hidden_size", "num_heads", "intermediate_size") if "encoder" in changes else ()
    idle += ("negative_size",) if changes.get("negatives") == "in-batch" else ()
    chosen = {name: value for name, value in {**sizes, **steps, **candidates}.items() if name not in idle}
    return Options(data=str(folder), **chosen | changes)


def accelerator() -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True)


def make_step(options: Options, data: dict[str, RegionData], seed: int = 1) -> TrainingStep:
    return TrainingStep.of(options, data["train"], seed, accelerator())


def train(options: Options, data: dict[str, RegionData], out: Path, seed: int = 1) -> dict:
    return training.train(options, data, seed, out, accelerator())


def run(options: Options, out: Path) -> Experiment:
    return training.run(options, Runs(out=str(out)), accelerator())


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_learning_rate_of_the_released_schedule():
    golden = load_golden("iais", "schedules")
    peak, warmup, total = (golden[name].item() for name in ("lr_base", "warmup", "total"))
    rates = [learning_rate(step, peak, warmup, total) for step in golden["steps"].tolist()]
    np.testing.assert_allclose(rates, golden["lr"], rtol=1e-9)
    assert learning_rate(1, 1.0, 0, 1) == 1e-8 and learning_rate(1, 1.0, 0, 4) == 0.75


def test_decay_follows_the_released_rules():
    model = tiny_model()
    names = {id(value): name for name, value in model.named_parameters()}
    decayed, plain = ([names[id(value)] for value in group["params"]] for group in parameter_groups(model, 0.01))
    assert "img_embeddings.img_layer_norm.weight" in decayed and "img_embeddings.LayerNorm.weight" in plain
    assert all("bias" not in name and "LayerNorm.weight" not in name for name in decayed)
    assert len(decayed) + len(plain) == len(names)


@given(
    counts=st.lists(st.integers(1, 5), min_size=4, max_size=9),
    source=st.sampled_from(["sampled", "in-batch"]),
    step=st.integers(0, 40),
    seed=st.integers(0, 3),
    shuffled=st.booleans(),
)
def test_anchors(counts, source, step, seed, shuffled):
    text_to_image = np.repeat(np.arange(len(counts)), counts)
    if shuffled:
        text_to_image = np.random.default_rng(seed).permutation(text_to_image)
    sampler = AnchorSampler(text_to_image, 3, source, 3 if source == "sampled" else 99, seed)
    for kind in (IMAGE, TEXT):
        anchors = sampler.draw(step, kind)
        assert anchors.texts.shape == anchors.images.shape == (3, 4 if source == "sampled" else 3)
        matched = text_to_image[anchors.texts] == anchors.images
        assert matched[:, 0].all() and not matched[:, 1:].any()
        fixed, free = (anchors.texts, anchors.images) if kind == TEXT else (anchors.images, anchors.texts)
        assert (fixed == fixed[:, :1]).all()
        assert all(len(set(row)) == len(row) for row in free.tolist())
        again = AnchorSampler(text_to_image, 3, source, 3 if source == "sampled" else 99, seed).draw(step, kind)
        assert (again.texts == anchors.texts).all() and (again.images == anchors.images).all()


def test_an_epoch_meets_every_caption_and_image_once(data):
    owners = data["train"].text_to_image.numpy()
    sampler = AnchorSampler(owners, 8, negative_size=5)
    texts = np.concatenate([sampler.draw(step, TEXT).texts[:, 0] for step in range(len(owners) // 8)])
    images = np.concatenate([sampler.draw(step, IMAGE).images[:, 0] for step in range(40 // 8)])
    assert sorted(texts) == list(range(len(owners))) and sorted(images) == list(range(40))
    assert (texts[:40] != np.concatenate([sampler.draw(step, TEXT).texts[:, 0] for step in range(10, 15)])).any()


def test_captions_and_images_have_orders_of_their_own():
    """Also where each image has one caption, so that equal orders would give the same pairs twice."""
    sampler = AnchorSampler(np.arange(40), 8, negative_size=5)
    texts = np.concatenate([sampler.draw(step, TEXT).texts[:, 0] for step in range(5)])
    images = np.concatenate([sampler.draw(step, IMAGE).images[:, 0] for step in range(5)])
    assert sorted(texts) == sorted(images) and texts.tolist() != images.tolist()


@pytest.mark.parametrize("kind", [IMAGE, TEXT])
def test_hardest_are_those_that_the_model_scores_highest(data, kind):
    torch.manual_seed(0)
    model, batches = tiny_model().train(), PairBatches(data["train"], Collator(tiny_tokenizer()))
    anchors = AnchorSampler(data["train"].text_to_image.numpy(), 3, negative_size=9).draw(5, kind)
    hard = hardest(model, batches, anchors, 4, batch_size=2)
    assert model.training
    with torch.no_grad():
        scores = model.eval()(**batches.pairs(anchors.texts.ravel(), anchors.images.ravel())).scores.view(3, 10)
    columns = scores[:, 1:].topk(4).indices.numpy() + 1
    for picked, drawn in ((hard.texts, anchors.texts), (hard.images, anchors.images)):
        assert (picked[:, 0] == drawn[:, 0]).all()
        assert (picked[:, 1:] == np.take_along_axis(drawn, columns, 1)).all()
    assert hardest(model, batches, anchors, 9) is anchors


def plain_gradient(training_step: TrainingStep, step: int) -> dict[str, torch.Tensor]:
    """The gradient of a step, one anchor after the other."""
    options, model = training_step.options, training_step.model
    model.zero_grad()
    factor = options.batch_size if options.iais_scale == "sum" else 1
    weight = factor * options.iais_weight * annealing(step / options.num_steps, options.iais_schedule)
    for kind, modality in ((IMAGE, "V"), (TEXT, "L")):
        anchors = training_step.sampler.draw(step, kind)
        if step < options.random_steps:
            anchors = anchors.first(options.hard_negatives)
        anchors = hardest(model, training_step.batches, anchors, options.hard_negatives)
        model.train()
        for texts, images in zip(anchors.texts, anchors.images, strict=True):
            with IAISHook(model) as hook:
                batch = training_step.batches.pairs(texts, images)
                scores = model(**batch).scores.sigmoid()
                loss = F.relu(options.margin + scores[1:] - scores[0]).mean()
                if options.iais != "none":
                    places = model.positions(batch["attention_mask"], batch["region_mask"])
                    blocks = hook.blocks(*places, keep_scores=True, rows=slice(0, 1))
                    loss = loss + weight * iais_loss(blocks, options.iais, modality, options.pseudo_norm)
            (loss / options.batch_size).backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    return gradients


@pytest.mark.parametrize(
    "changes",
    [
        {"iais": "singular", "anchors_per_forward": 3},
        {"iais": "distributed", "iais_schedule": "const", "iais_scale": "sum"},
        {"iais": "singular", "pseudo_norm": "softmax_scores", "iais_schedule": "linear", "iais_weight": 3.0},
        {"iais": "singular", "pseudo_norm": "renorm", "negatives": "in-batch", "margin": 0.7},
        {"iais": "singular", "gradient_checkpointing": True, "iais_schedule": "const"},
        {"iais": "none", "negative_size": 3},
        {"iais": "none", "random_steps": 5},
        {"iais": "none", "random_steps": 4},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_gradient_is_that_of_the_formula(folder, data, changes):
    step = make_step(small(folder, dropout=0.0, **changes), data)
    wanted = plain_gradient(step, 4)
    step.parallel.train()
    step.accumulate(4, step.iais_weight(4))
    for name, value in step.model.named_parameters():
        torch.testing.assert_close(
            value.grad, wanted[name], rtol=1e-3, atol=1e-6, msg=lambda text, n=name: f"{n} {text}"
        )


def test_options_change_the_training(folder, data):
    changes = [{}, {"iais": "none"}, {"iais": "distributed"}, {"iais_weight": 2.0}, {"iais_schedule": "const"}]
    changes += [{"iais_scale": "sum"}, {"pseudo_norm": "renorm"}, {"negatives": "in-batch"}, {"negative_size": 9}]
    changes += [
        {"hard_negatives": 4},
        {"random_steps": 1},
        {"margin": 0.3},
        {"lr": 0.02},
        {"warmup_steps": 1},
        {"weight_decay": 0.5},
    ]
    changes += [{"clip_norm": 0.01}, {"dropout": 0.5}, {"num_layers": 1}, {"max_text_length": 4}, {"vocab_size": 40}]
    ends = set()
    for change in changes:
        step = make_step(small(folder, **change), data)
        for number in range(2):
            step(number)
        ends.add(float(sum(value.detach().double().abs().sum() for value in step.model.parameters())))
    assert len(ends) == len(changes)


def test_trained_model_ranks_better_than_chance(tmp_path):
    folder = write_regions(tmp_path / "data", {"train": 150, "valid": 12, "test": 20})
    data = read_splits(folder)
    sizes = {"hidden_size": 32, "batch_size": 8, "anchors_per_forward": 8, "hard_negatives": 7}
    steps = {"num_steps": 150, "warmup_steps": 10, "validate_every": 50, "lr": 2e-3}
    options = small(folder, dropout=0.0, iais_weight=0.1, **sizes, **steps)
    experiment = run(options, tmp_path)
    record = experiment.runs["seed1"]
    assert record["history"][-1]["rank_loss"] < 0.18 < record["history"][0]["rank_loss"]
    assert record["ir_mean_rank"] < 8.8 and record["isd"] > 0  # by chance 9.5
    best = max(record["history"], key=lambda entry: entry["rsum"])
    assert (record["best_step"], record["valid_rsum"]) == (best["step"], best["rsum"])
    # the model that is kept is the best step's, and gives the published numbers
    model, tokenizer = load(tmp_path / "seed1" / "model")
    for split, wanted in (("valid", best), ("test", record)):
        again = metrics(model, data[split], Collator(tokenizer, None), options.eval_batch_size, accelerator())
        assert again == pytest.approx({name: wanted[name] for name in again}, rel=1e-4)
    assert run(options, tmp_path).runs == experiment.runs
    with pytest.raises(OptionError, match=r"--out: .* holds runs with lr = 0.002, now lr = 0.5"):
        run(replace(options, lr=0.5), tmp_path)


def train_killed(options: Options, out: Path, kill_at: int) -> None:
    torch.set_num_threads(1)
    whole_step = TrainingStep.__call__

    def step(self: TrainingStep, number: int) -> dict:
        if number == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole_step(self, number)

    TrainingStep.__call__ = step
    run(options, out)


@pytest.mark.parametrize("kill_at", [3, 9])
def test_killed_run_ends_where_a_straight_one_ends(folder, tmp_path, kill_at):
    options = small(folder, num_steps=14, save_every=2, validate_every=7)
    straight = run(options, tmp_path / "straight").runs["seed1"]
    process = FORK.Process(target=train_killed, args=(options, tmp_path / "killed", kill_at))
    process.start()
    process.join()
    checkpoint = tmp_path / "killed" / "seed1" / "checkpoint.pt"
    assert process.exitcode == -signal.SIGKILL
    assert not read_results(tmp_path / "killed")
    with pytest.raises(OptionError, match=r"--out: .*checkpoint.pt was trained with other lr: choose another folder"):
        train(replace(options, lr=0.5), read_splits(folder), checkpoint.parent)
    resumed = run(options, tmp_path / "killed").runs["seed1"]
    for record in (straight, resumed):
        record.pop("seconds_per_step")
    assert straight == resumed
    models = [load(tmp_path / name / "seed1" / "model")[0] for name in ("straight", "killed")]
    assert all(torch.equal(*pair) for pair in zip(*(weights(model).values() for model in models), strict=True))


def test_results_under_earlier_names_of_options_count(folder, data):
    names = {"validate_every": "valid_steps", "save_every": "save_steps", "eval_batch_size": "score_batch"}
    settings = training.settings_of(small(folder), data)
    earlier = {names.get(name, name): value for name, value in settings.items()}
    assert not list(settings.differing(earlier))
    assert list(settings.differing(earlier | {"valid_steps": 4})) == [("validate_every", 4, 3)]


def test_changed_captions_and_encoders_are_not_mixed(folder, data, tmp_path):
    """Neither finished runs nor a checkpoint are those of other data, or of another encoder, at the same place."""
    encoder = tmp_path / "encoder"
    save_encoder(encoder, data["train"], seed=0)
    shutil.copytree(folder, tmp_path / "data")
    options = small(tmp_path / "data", encoder=str(encoder), max_text_length=20, num_steps=2)
    run(options, tmp_path / "out")
    alone = tmp_path / "alone"
    train(options, read_splits(tmp_path / "data"), alone)
    lines = (tmp_path / "data" / "test.jsonl").read_text().splitlines()
    image = json.loads(lines[0])
    changed = json.dumps(image | {"captions": ["the dog", *image["captions"][1:]]})
    (tmp_path / "data" / "test.jsonl").write_text("\n".join([changed, *lines[1:]]) + "\n")
    with pytest.raises(OptionError, match=r"--out: .* holds runs with inputs.test = .*, now inputs.test = "):
        run(options, tmp_path / "out")
    with pytest.raises(OptionError, match=r"was trained with other inputs\.test: choose another folder"):
        train(options, read_splits(tmp_path / "data"), alone)
    save_encoder(encoder, data["train"], seed=1)
    with pytest.raises(OptionError, match=r"was trained with other inputs\.encoder: choose another folder"):
        train(options, data, alone)


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], {"settings": [], "progress": {}, "model": 0, "optimizer": 0}])
def test_foreign_checkpoints(folder, data, tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: not a checkpoint of this training; delete it"):
        train(small(folder), data, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def read_results(out: Path) -> dict:
    return read_json(out / "results.json")["runs"] if (out / "results.json").exists() else {}


def test_bfloat16(folder, data):
    AcceleratorState._reset_state(reset_partial_state=True)
    step = TrainingStep.of(small(folder), data["train"], 1, Accelerator(cpu=True, mixed_precision="bf16"))
    before = weights(step.model)
    assert np.isfinite([float(value) for value in step(0).values()]).all()
    assert all(value.dtype == torch.float32 for value in step.model.parameters())
    assert any(not torch.equal(before[name], value) for name, value in step.model.named_parameters())


@pytest.mark.parametrize("iais", ["none", "singular"])
def test_attention_implementations_train_alike(folder, data, tmp_path, iais):
    """To rounding; and what is saved does not ask for either."""
    losses = []
    for name in ("sdpa", "eager"):
        step = make_step(small(folder, iais=iais, attn_implementation=name), data)
        assert step.model.config._attn_implementation == name
        losses.append(torch.stack([step(number)["rank_loss"] for number in range(3)]))
        save_folder(step.model, step.batches.collator.tokenizer, tmp_path / name)
        assert "attn" not in (tmp_path / name / "config.json").read_text()
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)


def test_features_instead_of_labels(tmp_path):
    folder = write_regions(tmp_path / "data", {"train": 12, "valid": 4, "test": 4}, feature_size=6)
    record = run(small(folder, num_steps=2), tmp_path / "out").runs["seed1"]
    assert 0 <= record["ir_r1"] <= 1
    assert load(tmp_path / "out" / "seed1" / "model")[0].config.region_feature_size == 6


def test_learned_tokenizer():
    tokenizer = learn_tokenizer(["A dog, a Dog.", "the cat"], 60)
    assert tokenizer.convert_ids_to_tokens(tokenizer("the Dog!")["input_ids"]) == [
        "[CLS]",
        "the",
        "dog",
        "[UNK]",
        "[SEP]",
    ]
    assert tokenizer.tokenize("dot") == ["d", "##o", "##t"]
    assert len(learn_tokenizer(["a dog a cat"], 1)) == 5 + 2 * len(set("adogct"))
    assert tokenizer.get_vocab() == learn_tokenizer(["the cat", "A dog, a Dog."], 60).get_vocab()


def save_encoder(folder: Path, data: RegionData, seed: int) -> None:
    """A tiny BERT with a tokenizer of the captions."""
    tokenizer = learn_tokenizer(data.captions, 100)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=30, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_encoder_folder(folder, data, tmp_path):
    source = learn_tokenizer(data["train"].captions, 100)
    model, _ = build(small(folder), data["train"])
    encoder = model.config
    sizes = {name: getattr(encoder, name) for name in ("vocab_size", "hidden_size", "intermediate_size")}
    config = BertConfig(**sizes, num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=30)
    bert = BertModel(config)
    bert.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no tokenizer in it"):
        build(small(folder, encoder=str(tmp_path), max_text_length=20), data["train"])
    source.save_pretrained(tmp_path)
    options = small(folder, encoder=str(tmp_path), max_text_length=20, num_layers=1, dropout=0.3)
    model, tokenizer = build(options, data["train"])
    assert torch.equal(model.encoder.layer[0].output.dense.weight, bert.encoder.layer[0].output.dense.weight)
    assert len(model.encoder.layer) == 1 and tokenizer.model_max_length == 22
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}
    save_folder(model, tokenizer, tmp_path / "saved")
    assert load(tmp_path / "saved")[0].config.attention_probs_dropout_prob == 0.3
    with pytest.raises(OptionError, match="--max-text-length must be at most 28"):
        build(replace(options, max_text_length=29), data["train"])


@pytest.fixture(scope="module")
def uniter(tmp_path_factory):
    """Data with features, an encoder, and a UNITER checkpoint of that size with more layers than are kept."""
    folder = tmp_path_factory.mktemp("uniter")
    data = read_splits(write_regions(folder / "data", {"train": 12, "valid": 4, "test": 4}, feature_size=6))
    save_encoder(folder / "encoder", data["train"], seed=0)
    torch.manual_seed(7)
    source = RegionRetriever.from_encoder(folder / "encoder", region_feature_size=6)
    for value in source.state_dict().values():
        value.normal_()
    weights = {f"uniter.{name}": value for name, value in source.state_dict().items() if "rank_output" not in name}
    weights |= {"itm_output.weight": torch.randn(2, 16), "itm_output.bias": torch.randn(2)}
    torch.save(weights, folder / "uniter.pt")
    save_file(weights, folder / "uniter.safetensors")
    return folder, data, weights


@pytest.mark.parametrize("name", ["uniter.pt", "uniter.safetensors"])
def test_training_starts_from_uniter(uniter, tmp_path, name):
    folder, data, weights = uniter
    places = {"encoder": str(folder / "encoder"), "uniter": str(folder / name)}
    options = small(folder / "data", max_text_length=20, num_layers=1, num_steps=2, **places)
    train(options, data, tmp_path)
    loaded = load(tmp_path / "initial")[0].state_dict()
    assert torch.equal(loaded.pop("rank_output.weight"), weights["itm_output.weight"][1:])
    assert torch.equal(loaded.pop("rank_output.bias"), weights["itm_output.bias"][1:])
    assert all(torch.equal(value, weights[f"uniter.{key}"]) for key, value in loaded.items())
    inputs = load_safely(tmp_path / "checkpoint.pt")["settings"]["inputs"]
    assert inputs.keys() == {"train", "valid", "test", "encoder", "uniter"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"uniter.pooler.dense.bias": torch.zeros(3)}, "no UNITER checkpoint of this size: it lacks embeddings."),
        ({"pooler.dense.bias": torch.zeros(3)}, "another size: it has pooler.dense.bias (3,) instead of (16,)"),
        ([1, 2], "expected named tensors, such as a model's state_dict"),
        ({"model": {"a": 1}}, "expected named tensors, such as a model's state_dict"),
        (b"nothing", "refused by torch's safe loader"),
        (None, "No such file or directory"),
    ],
)
def test_files_that_are_no_uniter_of_this_size(uniter, tmp_path, content, message):
    folder, data, weights = uniter
    path = tmp_path / "other.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        whole = {name.removeprefix("uniter."): value for name, value in weights.items()} if "another" in message else {}
        torch.save(whole | content if whole else content, path)
    options = small(folder / "data", encoder=str(folder / "encoder"), max_text_length=20, uniter=str(path))
    with pytest.raises(CheckpointError) as error:
        build(options, data["train"])
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_uniter_needs_an_encoder(folder):
    with pytest.raises(OptionError, match=r"--uniter u\.pt: needs the folder of a BERT of its size"):
        small(folder, uniter="u.pt")


def test_encoders_that_are_no_bert(folder, data, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 16}))
    with pytest.raises(CheckpointError) as error:
        build(small(folder, encoder=str(tmp_path)), data["train"])
    assert str(error.value) == f"{tmp_path}: model_type is 'vit', it must be 'bert'"


def test_saving_keeps_a_whole_model(folder, data, tmp_path, monkeypatch):
    model, tokenizer = build(small(folder), data["train"])
    save_folder(model, tokenizer, tmp_path / "model")
    before = weights(load(tmp_path / "model")[0])
    with torch.no_grad():
        model.rank_output.weight += 1
    monkeypatch.setattr(type(model), "save_pretrained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_folder(model, tokenizer, tmp_path / "model")
    after = weights(load(tmp_path / "model")[0])
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_first_images(data):
    part = first_images(data["train"], 3)
    assert len(part.images) == 3 and part.labels == data["train"].labels
    assert part.captions == data["train"].captions[: len(part)]
    assert first_images(data["train"], 0) is data["train"]


def test_processes_share_out_the_captions(data):
    part = first_images(data["test"], 3)
    shares = [evaluate._share(part, SimpleNamespace(process_index=rank, num_processes=4)) for rank in range(4)]
    assert sorted(torch.cat([numbers for numbers, _ in shares]).tolist()) == list(range(len(part)))
    for numbers, share in shares:
        assert share.captions == [part.captions[number] for number in numbers] and len(share.images) == 3
        assert torch.equal(share.text_to_image, part.text_to_image[numbers])
    assert not len(shares[3][1])


def test_regions_without_features_or_labels(folder, data):
    bare = RegionData(data["train"].images)
    with pytest.raises(DataError, match="regions have neither features nor labels"):
        build(small(folder), bare)


def test_loss_that_is_not_finite(folder, data, tmp_path):
    with pytest.raises(InputError, match=r"^step \d+: the \w+_loss is nan; lower --lr or --iais-weight$"):
        train(small(folder, lr=1e30, warmup_steps=0), data, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists() and not (tmp_path / "model").exists()


def test_step_counts_processes(folder, data):
    step = make_step(small(folder, iais_scale="sum", iais_weight=0.5, iais_schedule="const"), data)
    assert step.iais_weight(0) == 0.5 * 4


def test_a_sum_over_the_shares_of_processes_is_not_mixed_with_another(folder, data, monkeypatch):
    """The weight of the alignment loss is another then; a mean is the same for any number of processes."""
    two = SimpleNamespace(process_index=0, num_processes=2)
    monkeypatch.setattr(RegionData, "digest", lambda own, processes: str(len(own)))
    for scale, names in (("mean", []), ("sum", ["inputs.processes"])):
        options = small(folder, iais_scale=scale)
        alone, shared = training.settings_of(options, data), training.settings_of(options, data, two)
        assert [name for name, *_ in shared.differing(alone)] == names
        assert not list(shared.differing(training.settings_of(options, data, two)))
        assert "processes" not in alone["inputs"]  # as results always were

"""Folders of classifiers: what is loaded, built and saved, and what is refused."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from fairseq_ext.training.errors import CheckpointError, InputError, OptionError
from fairseq_ext.training.pretrained import fingerprint
from tests.vision_language.muka.texts import tiny_tokenizer, write_classifier, write_encoder
from vision_language.muka.models import build_classifier, load_classifier, load_classifiers, save_classifier


@pytest.fixture
def folder(tmp_path):
    return write_classifier(tmp_path / "model", ["music", "sport", "travel"])


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def test_load(folder):
    classifier = load_classifier(folder)
    assert classifier.labels == ("music", "sport", "travel") and not classifier.model.training
    assert classifier.model.dtype == torch.float32 and classifier.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


def test_saved_models_are_read_by_transformers(folder, tmp_path):
    torch.manual_seed(0)
    made = build_classifier(folder, ["b", "a"])
    save_classifier(made, tmp_path / "new")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "new", local_files_only=True)
    assert plain.config.id2label == {0: "b", 1: "a"} and plain.config.label2id == {"b": 0, "a": 1}
    classifier = load_classifier(tmp_path / "new")
    assert classifier.labels == ("b", "a")
    assert all(
        torch.equal(value, classifier.model.state_dict()[name]) for name, value in made.model.state_dict().items()
    )
    assert not (tmp_path / "new" / "saving").exists()


def test_other_architectures(tmp_path):
    tokenizer = tiny_tokenizer()
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    config.id2label = {0: "x", 1: "y"}
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_classifier(tmp_path).labels == ("x", "y")
    cut = build_classifier(tmp_path, ["a", "b", "c"], num_layers=1)
    assert len(cut.model.distilbert.transformer.layer) == 1


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json in it, so it is no model"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not a JSON file"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json: no model_type"),
        (lambda f: edit_config(f, model_type="nothing"), "cannot be loaded"),
        (lambda f: edit_config(f, id2label=None), "its id2label has no names but LABEL_0"),
        (lambda f: edit_config(f, id2label={}), "its id2label in config.json names no class"),
        (lambda f: edit_config(f, id2label={"0": "LABEL_0", "1": "LABEL_1"}), "no names but LABEL_0"),
        (lambda f: edit_config(f, id2label={"0": "a", "1": "b", "2": "a"}), "id2label has 'a' twice"),
        (lambda f: edit_config(f, id2label={"0": "a", "2": "b"}), "id2label has no class '1' among its 2"),
        (lambda f: edit_config(f, id2label={"0": "a"}), "has 1 class, at least two are needed"),
        (lambda f: edit_config(f, problem_type="multi_label_classification"), "problem_type is multi_label_class"),
        (lambda f: edit_config(f, problem_type="regression"), "its problem_type is regression; only a model that"),
        (lambda f: edit_config(f, architectures=["BertForTokenClassification"]), "TokenClassification does not tell"),
        (lambda f: edit_config(f, architectures=["BertForMaskedLM"]), "a BertForMaskedLM does not tell the class"),
        (lambda f: edit_config(f, id2label={"0": "a", "1": "b"}), "cannot be loaded"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors in it"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100), "cannot be loaded"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "cannot be loaded"),
        (lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")], "no tokenizer in it"),
        (lambda f: tiny_tokenizer(("more", "tokens")).save_pretrained(f), "its model only"),
    ],
)
def test_refused_folders(folder, break_it, message):
    break_it(folder)
    with pytest.raises(CheckpointError) as error:
        load_classifier(folder)
    assert message in str(error.value) and str(folder) in str(error.value) and "\n" not in str(error.value)


def test_renamed_classes(folder, tmp_path):
    nameless = write_classifier(tmp_path / "nameless", ["LABEL_0", "LABEL_1"])
    with pytest.raises(CheckpointError, match="give them with --rename LABEL_0=NAME"):
        load_classifiers([nameless])
    renames = ["1:LABEL_0=golf", "LABEL_1=music", "2:music=song"]
    assert [c.labels for c in load_classifiers([nameless, folder], renames)] == [
        ("golf", "music"),
        ("song", "sport", "travel"),
    ]
    assert [c.labels for c in load_classifiers([folder, folder], ["sport=games"])] == [("music", "games", "travel")] * 2
    for renames, message in (
        (["golf=x"], "--rename golf=x: no such class; there are music, sport, travel"),
        (["2:music=x"], "--rename 2:music=x: no such class"),
        (["music"], "--rename must be OLD=NEW or NUMBER:OLD=NEW, such as 2:LABEL_0=sport, got 'music'"),
        (["music=sport"], "has 'sport' twice"),
    ):
        with pytest.raises(InputError) as error:
            load_classifiers([folder], renames)
        assert message in str(error.value)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(
        CheckpointError, match=r"pytorch_model\.bin could run code when loaded; only model\.safetensors"
    ):
        load_classifier(folder)


def test_code_in_a_folder_is_not_run(folder, tmp_path):
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'hacked')!r}, 'w')\nclass M: pass\nclass C: pass\n")
    auto = {"AutoConfig": "modeling.C", "AutoModelForSequenceClassification": "modeling.M"}
    edit_config(folder, auto_map=auto, model_type="unknown")
    with pytest.raises(InputError):
        load_classifier(folder)
    assert not (tmp_path / "hacked").exists()


def test_an_encoder_is_no_teacher(tmp_path):
    write_encoder(tmp_path)
    edit_config(tmp_path, id2label={"0": "a", "1": "b"})
    with pytest.raises(CheckpointError, match="a BertModel does not tell the class of a text"):
        load_classifier(tmp_path)
    edit_config(tmp_path, architectures=None)
    with pytest.raises(CheckpointError, match=r"not a trained model: its weights lack classifier\."):
        load_classifier(tmp_path)


@pytest.mark.parametrize("load", [load_classifier, lambda folder: build_classifier(folder, ["a", "b"])])
def test_missing_folder(tmp_path, load):
    with pytest.raises(OptionError, match="missing is not a folder; a model is a folder with"):
        load(tmp_path / "missing")


def test_first_layers(tmp_path):
    write_encoder(tmp_path, layers=3)
    whole, cut = build_classifier(tmp_path, ["a", "b"]), build_classifier(tmp_path, ["a", "b"], num_layers=2)
    assert cut.model.config.num_hidden_layers == 2
    kept = cut.model.bert.state_dict()
    assert len(kept) < len(whole.model.bert.state_dict())
    assert all(torch.equal(value, whole.model.bert.state_dict()[name]) for name, value in kept.items())
    with pytest.raises(OptionError, match=r"--num-layers: .* has 3 layers, got 4"):
        build_classifier(tmp_path, ["a", "b"], num_layers=4)


def test_from_scratch(tmp_path):
    write_encoder(tmp_path)
    trained = build_classifier(tmp_path, ["a", "b"])
    (tmp_path / "model.safetensors").unlink()
    torch.manual_seed(3)
    made = build_classifier(tmp_path, ["a", "b"], num_layers=4, from_scratch=True)
    assert made.model.config.num_hidden_layers == 4
    name = "bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(made.model.state_dict()[name], trained.model.state_dict()[name])
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        build_classifier(tmp_path, ["a", "b"])


def test_seed_of_the_new_layer(folder):
    def classifier(seed):
        torch.manual_seed(seed)
        return build_classifier(folder, ["a", "b"]).model.classifier.weight

    assert torch.equal(classifier(1), classifier(1)) and not torch.equal(classifier(1), classifier(2))


def test_weights_of_another_model_are_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    RobertaModel(
        RobertaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path / "roberta")
    write_encoder(tmp_path / "bert", hidden=24)
    (tmp_path / "roberta" / "model.safetensors").rename(tmp_path / "bert" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"its weights lack bert\.embeddings.* of the encoder"):
        build_classifier(tmp_path / "bert", ["a", "b"])


def test_length(folder):
    classifier = load_classifier(folder)
    assert classifier.length() == 32 and classifier.length(20) == 20
    with pytest.raises(OptionError, match=r"--max-length: .*model reads at most 32 tokens, got 33"):
        classifier.length(33)


@pytest.mark.parametrize("padding", [0, 1])
def test_length_of_models_whose_positions_are_offset(tmp_path, padding):
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=20, pad_token_id=padding, **sizes)
    config.id2label = {0: "a", 1: "b"}
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    classifier, most = load_classifier(tmp_path), 19 - padding
    assert classifier.length() == classifier.length(most) == most
    classifier.model(torch.full((1, most), 5))
    with pytest.raises((IndexError, RuntimeError)):  # by version of transformers
        classifier.model(torch.full((1, most + 1), 5))
    with pytest.raises(OptionError, match=f"--max-length: .* reads at most {most} tokens, got {most + 1}"):
        classifier.length(most + 1)


def test_fingerprint(folder):
    before = fingerprint(folder)
    (folder / "results.json").write_text("{}")
    (folder / "README.md").write_text("about")
    (folder / "tensorboard").mkdir()
    assert fingerprint(folder) == before
    own = [path.name for path in folder.glob("*.*") if path.name not in ("README.md", "results.json")]
    for name in (*own, "vocab.txt", "merges.txt", "spiece.model", "vocab.bpe", "bpe.codes", "o200k.tiktoken", "words"):
        with open(folder / name, "a", encoding="utf-8") as file:
            file.write("a")
        assert fingerprint(folder) != before
        before = fingerprint(folder)
    (folder / "words").rename(folder / "letters")
    assert fingerprint(folder) != before

"""Teachers merged by their weights: what the merged weights are, and which teachers are refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaModel

from fairseq_ext.training.errors import OptionError
from tests.vision_language.muka.texts import tiny_tokenizer, write_classifier, write_encoder
from vision_language.muka.__main__ import main
from vision_language.muka.merge import merged_classifier
from vision_language.muka.models import load_classifier


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three teachers of one shape and others that fit in all but one thing."""
    folder = tmp_path_factory.mktemp("merge")
    classes = {"first": ["a", "b"], "second": ["c", "d"], "third": ["e", "f", "g"]}
    paths = {
        name: write_classifier(folder / name, labels, seed=seed)
        for seed, (name, labels) in enumerate(classes.items(), 1)
    }
    other = ["x", "y"]
    paths["deeper"] = write_classifier(folder / "deeper", other, layers=3)
    paths["wider"] = write_classifier(folder / "wider", other, hidden=24)
    paths["tokens"] = write_classifier(folder / "tokens", other, extra=("zig",))
    paths["overlap"] = write_classifier(folder / "overlap", ["b", "y"])
    paths["base"] = write_encoder(folder / "base", layers=4)
    paths["shallow"] = write_encoder(folder / "shallow", layers=1)
    return paths


def states(*folders):
    return [load_classifier(folder).model.state_dict() for folder in folders]


@pytest.mark.parametrize("rule", ["average", "task-arithmetic"])
def test_merged_weights(folders, tmp_path, capsys, rule):
    """Encoders by the formula, output layers side by side; the folder is a classifier of all classes."""
    teachers = [folders[name] for name in ("first", "second", "third")]
    arithmetic = ["--base", str(folders["base"]), "--scale", "0.3"] if rule == "task-arithmetic" else []
    command = ["merge", "--teachers", *map(str, teachers), "--rule", rule, *arithmetic, "--out", str(tmp_path / "out")]
    main(command)
    assert capsys.readouterr().out == f"7 classes: {tmp_path / 'out'}\n"
    merged, own = load_classifier(tmp_path / "out"), states(*teachers)
    assert merged.labels == ("a", "b", "c", "d", "e", "f", "g") and not merged.model.training
    base = {f"bert.{name}": value for name, value in load_file(folders["base"] / "model.safetensors").items()}
    for name, value in merged.model.state_dict().items():
        each = [state[name] for state in own]
        if not name.startswith("bert."):
            expected = torch.cat(each)
        elif rule == "average":
            expected = sum(each) / 3
        else:
            expected = base[name] + 0.3 * sum(weights - base[name] for weights in each)
        torch.testing.assert_close(value, expected)
    with pytest.raises(OptionError, match="out holds a model; choose another folder"):
        main(command)


def test_layers_that_classes_do_not_change_are_averaged(folders, tmp_path):
    """RoBERTa's output layer has a map before it, which is of the task and not of the base."""
    tokenizer = tiny_tokenizer()
    shape = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    paths = []
    for seed, labels in enumerate((["a", "b"], ["c", "d"])):
        torch.manual_seed(seed)
        config = RobertaConfig(**shape, intermediate_size=32, pad_token_id=0, id2label=dict(enumerate(labels)))
        paths.append(tmp_path / labels[0])
        RobertaForSequenceClassification(config).save_pretrained(paths[-1])
        tokenizer.save_pretrained(paths[-1])
    RobertaModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    classifiers = [load_classifier(path) for path in paths]
    merged = merged_classifier(classifiers, tmp_path / "base", scale=1.0).model.state_dict()
    first, second = (classifier.model.state_dict() for classifier in classifiers)
    name = "classifier.dense.weight"
    torch.testing.assert_close(merged[name], (first[name] + second[name]) / 2)
    assert merged["classifier.out_proj.weight"].shape == (4, 16)


def test_what_the_base_lacks_is_averaged(folders, tmp_path, capsys):
    """A masked language model has no pooler; one drawn at random is no origin of anything."""
    shutil.copytree(folders["base"], tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    base = load_file(path)
    save_file({name: value for name, value in base.items() if "pooler" not in name}, path, {"format": "pt"})
    teachers = [load_classifier(folders[name]) for name in ("first", "second")]
    own = [teacher.model.state_dict() for teacher in teachers]
    merged = merged_classifier(teachers, tmp_path / "base", scale=0.3).model.state_dict()
    told = capsys.readouterr().err
    assert f"--base: {tmp_path / 'base'} has no bert.pooler.dense.bias, bert.pooler.dense.weight; the average" in told
    assert "drawn" not in told
    for name in ("bert.pooler.dense.weight", "bert.pooler.dense.bias"):
        torch.testing.assert_close(merged[name], (own[0][name] + own[1][name]) / 2)
    name = "bert.encoder.layer.0.output.dense.weight"
    origin = base[name.removeprefix("bert.")]
    torch.testing.assert_close(merged[name], origin + 0.3 * (own[0][name] + own[1][name] - 2 * origin))


def test_one_over_the_teachers_is_the_average(folders):
    teachers = [load_classifier(folders[name]) for name in ("first", "second")]
    before = torch.get_rng_state()
    average, arithmetic = merged_classifier(teachers), merged_classifier(teachers, folders["base"], scale=0.5)
    assert torch.equal(before, torch.get_rng_state())
    for name, value in average.model.state_dict().items():
        torch.testing.assert_close(value, arithmetic.model.state_dict()[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["first"], "--teachers: at least two are needed, got 1"),
        (["first", "deeper"], "differ in bert.encoder.layer.2"),
        (["deeper", "first"], "differ in bert.encoder.layer.2"),
        (["first", "wider"], "architecture, depth and tokenizer are the same"),
        (["first", "tokens"], "differ in bert.embeddings.word_embeddings.weight"),
        (["first", "overlap"], "--teachers: a class of several teachers has several output layers"),
        (["first", "second", "--rule", "task-arithmetic"], "--base: --rule task-arithmetic needs the model that"),
        (["first", "second", "--base", "base"], "base: has no effect with --rule average"),
        (["first", "second", "--scale", "0.5"], "--scale 0.5: has no effect with --rule average"),
        (["first", "second", "--rule", "task-arithmetic", "--base", "shallow"], "is not what "),
    ],
)
def test_what_cannot_be_merged(folders, tmp_path, arguments, message):
    words = [str(folders.get(word, word)) for word in arguments]
    with pytest.raises(OptionError) as error:
        main(["merge", "--out", str(tmp_path / "out"), "--teachers", *words])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_tokenizers_must_be_the_same(folders, tmp_path):
    """Of equal size too."""
    file = write_classifier(tmp_path / "swapped", ["x", "y"]) / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["soup"], vocabulary["rose"] = vocabulary["rose"], vocabulary["soup"]
    file.write_text(json.dumps(content))
    with pytest.raises(OptionError, match="differ in their tokenizers"):
        merged_classifier([load_classifier(folders["first"]), load_classifier(tmp_path / "swapped")])

"""Model folders of others: their code is refused by name and never run, and no name of a hub is looked up."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertForSequenceClassification,
    BertModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from fairseq_ext.captions.networks import load_network
from fairseq_ext.training import pretrained
from fairseq_ext.training.errors import InputError
from fairseq_ext.training.pretrained import LOCAL, save_folder
from graph.label_graph.encoder import Encoder, fingerprint_of
from tests.vision_language.iais.regions import THINGS, tiny_config, tiny_model, tiny_tokenizer
from vision_language.iais import encoder
from vision_language.iais.model import RegionRetriever
from vision_language.image_classification import model as images
from vision_language.image_classification.options import Options
from vision_language.image_classification.preprocessing import Preprocessing
from vision_language.muka.models import build_classifier, load_classifier

CODE = """
from pathlib import Path
from transformers import BertConfig, BertModel, BertTokenizer
Path({mark!r}).touch()
class OwnConfig(BertConfig): pass
class OwnModel(BertModel): pass
class OwnTokenizer(BertTokenizer): pass
"""
AUTO = {f"Auto{kind}": "own.OwnModel" for kind in ("Model", "ModelForSequenceClassification")}
AUTO_MAPS = {
    "config.json": {"AutoConfig": "own.OwnConfig", **AUTO},
    "tokenizer_config.json": {"AutoTokenizer": ["own.OwnTokenizer", None]},
}
PLAIN = Preprocessing((0.1,), (0.2,), 28)


def start_of_images(path: Path) -> images.ImageClassifier:
    return images.build(Options(data="x", network=str(path)), ("a", "b", "c"), PLAIN)


LOADERS = {
    "iais.load": ("retriever", encoder.load),
    "RegionRetriever.from_pretrained": ("retriever", RegionRetriever.from_pretrained),
    "RegionRetriever.from_encoder": ("bert", lambda path: RegionRetriever.from_encoder(path, region_labels=THINGS)),
    "load_classifier": ("classifier", load_classifier),
    "images.load": ("images", images.load),
    "images.load of others": ("resnet", images.load),
    "images.build": ("images", start_of_images),
    "images.build on others": ("resnet", start_of_images),
    "label_graph.Encoder": ("bert", lambda path: Encoder(str(path), fingerprint_of(path))._model),
    "captions.load_network": ("resnet", lambda path: load_network(str(path), torch.device("cpu"))),
    "build_classifier": ("bert", lambda path: build_classifier(path, ["a", "b"])),
    "build_classifier from scratch": ("bert", lambda path: build_classifier(path, ["a", "b"], from_scratch=True)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A model of each kind with a tokenizer."""
    torch.manual_seed(0)
    config = tiny_config(id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    models = {"bert": BertModel(config), "classifier": BertForSequenceClassification(config), "retriever": tiny_model()}
    network = images.ImageNetworkConfig("large-margin-cnn", width=4, id2label=dict(enumerate("abcd")))
    models["images"] = images.ImageNetwork(network)
    shape = {"embedding_size": 4, "hidden_sizes": [4, 4], "depths": [1, 1], "layer_type": "basic"}
    models["resnet"] = ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=4, **shape))
    folder = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        save_folder(model, tiny_tokenizer(), folder / name)
    return {name: folder / name for name in models}


@pytest.fixture
def trapped(folders, tmp_path):
    """Copies of the models with code of their own that leaves a mark."""

    def copy(kind: str, *configs: str, **changes: object) -> Path:
        folder = tmp_path / kind
        shutil.copytree(folders[kind], folder)
        (folder / "own.py").write_text(CODE.format(mark=str(tmp_path / "executed")))
        for name in configs:
            content = json.loads((folder / name).read_text()) | {"auto_map": AUTO_MAPS[name]} | changes
            (folder / name).write_text(json.dumps(content))
        return folder

    return copy


@pytest.fixture(autouse=True)
def nothing_is_run_or_looked_up(tmp_path, monkeypatch):
    """Neither the code in a folder nor the network."""
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("no network in tests")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield asked
    assert not (tmp_path / "executed").exists() and not asked


@pytest.mark.parametrize("name", LOADERS)
def test_plain_folders_are_loaded(folders, name):
    kind, load = LOADERS[name]
    assert load(folders[kind])


@pytest.mark.parametrize("config", AUTO_MAPS)
@pytest.mark.parametrize("name", LOADERS)
def test_code_in_a_folder_is_refused_by_name(trapped, name, config):
    kind, load = LOADERS[name]
    folder = trapped(kind, config)
    with pytest.raises(InputError) as error:
        load(folder)
    assert str(error.value).startswith(f"{folder / config}: auto_map names code of the model's own, which is never run")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", LOADERS)
def test_code_is_not_run_where_it_was_not_seen(trapped, monkeypatch, name):
    """Nor for a kind of model that transformers does not know."""
    monkeypatch.setattr(pretrained, "_refuse_code", lambda path: None)
    kind, load = LOADERS[name]
    folder = trapped(kind, *AUTO_MAPS, model_type="own", tokenizer_class="OwnTokenizer")
    with pytest.raises(InputError):
        load(folder)


@pytest.mark.parametrize("load", [AutoModel.from_pretrained, AutoTokenizer.from_pretrained])
def test_the_arguments_of_every_loader(trapped, load):
    folder = trapped("bert", *AUTO_MAPS, model_type="own", tokenizer_class="OwnTokenizer")
    with pytest.raises(ValueError, match=r"trust_remote_code|does not recognize"):
        load(folder, **LOCAL)


@pytest.mark.parametrize("load", [AutoModel.from_pretrained, AutoTokenizer.from_pretrained])
def test_no_file_is_looked_up(nothing_is_run_or_looked_up, load):
    """Beside what huggingface_hub asks once for each process, whatever it is told."""
    for _ in range(2):
        nothing_is_run_or_looked_up.clear()
        with pytest.raises(OSError):
            load("bert-base-uncased", **LOCAL)


@pytest.mark.parametrize("name", LOADERS)
def test_names_of_a_hub_are_no_folders(name):
    with pytest.raises(
        InputError, match=r"bert-base-uncased'? is (not a folder; a model is a folder|not one of|neither)"
    ):
        LOADERS[name][1]("bert-base-uncased")


HEADS = {"images": "network.classifier.", "resnet": "classifier.", "classifier": "classifier."}
OF_MODELS = [name for name in LOADERS if "scratch" not in name]
STARTS = [
    name for name in OF_MODELS if LOADERS[name][0] == "bert" or name.split(".")[-1].startswith(("build", "load_net"))
]


def changed(folder: Path, place: Path, change) -> Path:
    """A copy of a model with other weights."""
    shutil.copytree(folder, place)
    path = place / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    return place


@pytest.mark.parametrize("name", OF_MODELS)
@pytest.mark.parametrize("damage", ["one", "all", "nan"])
def test_a_model_without_its_weights_is_refused(folders, tmp_path, name, damage):
    """Not drawn at random: one weight, the one of the middle; all, which have names of another program; not finite."""
    kind, load = LOADERS[name]
    own = sorted(key for key in load_file(folders[kind] / "model.safetensors") if key.endswith("weight"))
    middle = own[len(own) // 2]
    assert not middle.startswith(("pooler", HEADS.get(kind, "pooler")))
    changes = {
        "one": lambda weights: {key: value for key, value in weights.items() if key != middle},
        "all": lambda weights: {f"0.auto_model.{key}": value for key, value in weights.items()},
        "nan": lambda weights: weights | {middle: weights[middle] * torch.nan},
    }
    folder = changed(folders[kind], tmp_path / "model", changes[damage])
    with pytest.raises(InputError) as refusal:
        load(folder)
    assert str(folder) in str(refusal.value) and "\n" not in str(refusal.value)
    assert damage == "all" or middle.removeprefix("resnet.") in str(refusal.value)


@pytest.mark.parametrize("name", [name for name in OF_MODELS if LOADERS[name][0] == "resnet"])
def test_statistics_that_are_not_finite_are_refused(folders, tmp_path, name):
    def spoiled(weights):
        statistic = next(key for key in sorted(weights) if key.endswith("running_var"))
        return weights | {statistic: weights[statistic] * torch.inf}

    with pytest.raises(InputError, match=r"its weights are not finite in \S*running_var"):
        LOADERS[name][1](changed(folders["resnet"], tmp_path / "model", spoiled))


@pytest.mark.parametrize("name", [name for name in OF_MODELS if name not in STARTS])
def test_a_trained_model_has_its_last_layer(folders, tmp_path, name):
    kind, load = LOADERS[name]
    if kind in HEADS:
        head = HEADS[kind]
        folder = changed(
            folders[kind], tmp_path / "model", lambda w: {key: v for key, v in w.items() if not key.startswith(head)}
        )
        with pytest.raises(InputError, match=f"not a trained model: its weights lack {head}"):
            load(folder)


@pytest.mark.parametrize("kind", ["images", "resnet"])
def test_a_new_last_layer_is_drawn_and_said(folders, capsys, kind):
    """Twice from one seed the same, as large as a layer's; the encoder with its statistics is that of the folder."""
    layers = []
    for _ in range(2):
        torch.manual_seed(1)
        classifier = start_of_images(folders[kind])
        layers.append(classifier.last_linear().weight)
    assert "new weights, drawn at random: " + HEADS[kind] in capsys.readouterr().err
    assert layers[0].shape[0] == 3 and torch.equal(*layers) and 0.01 < layers[0].std() < 1
    stored, state = load_file(folders[kind] / "model.safetensors"), classifier.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in stored.items() if not key.startswith(HEADS[kind]))


def test_what_is_built_draws_as_before():
    """Drawing what a folder lacks must not draw a built network anew."""
    torch.manual_seed(0)
    built = images.ImageNetwork(images.ImageNetworkConfig("resnet32", image_size=32)).state_dict()
    torch.manual_seed(0)
    plain = images.CifarResNet(1, 2).state_dict()
    assert all(torch.equal(built[f"network.{key}"], value) for key, value in plain.items())

"""Model folders of others: their code is refused by name and never run, and no name of a hub is looked up."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertForSequenceClassification, BertModel

from fairseq_ext.training import pretrained
from fairseq_ext.training.errors import InputError
from fairseq_ext.training.pretrained import LOCAL, save_folder
from tests.vision_language.iais.regions import THINGS, tiny_config, tiny_model, tiny_tokenizer
from vision_language.iais import encoder
from vision_language.iais.model import RegionRetriever
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
LOADERS = {
    "iais.load": ("retriever", encoder.load),
    "RegionRetriever.from_pretrained": ("retriever", RegionRetriever.from_pretrained),
    "RegionRetriever.from_encoder": ("bert", lambda path: RegionRetriever.from_encoder(path, region_labels=THINGS)),
    "load_classifier": ("classifier", load_classifier),
    "build_classifier": ("bert", lambda path: build_classifier(path, ["a", "b"])),
    "build_classifier from scratch": ("bert", lambda path: build_classifier(path, ["a", "b"], from_scratch=True)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A model of each kind with a tokenizer."""
    torch.manual_seed(0)
    config = tiny_config(id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    models = {"bert": BertModel(config), "classifier": BertForSequenceClassification(config), "retriever": tiny_model()}
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
    with pytest.raises(InputError, match="bert-base-uncased is not a folder; a model is a folder"):
        LOADERS[name][1]("bert-base-uncased")

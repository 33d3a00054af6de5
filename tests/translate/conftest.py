"""A small model, trained in a second or two on a prepared folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from fairseq import options, tasks
from fairseq_cli import preprocess
from omegaconf import OmegaConf
from torch.nn import functional as F

from examples.translation import prepare
from fairseq_ext import Translator
from tests.models.commands import configuration
from tests.test_end_to_end import PAIRS

SIZES = {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in {"embed_dim": 32, "ffn_embed_dim": 32, "layers": 1, "attention_heads": 2}.items()
}
METHODS = {"block": "muse", "muse_kernels": "3", "attention_topk": 4, "norm": "adanorm"}
POSITIONS = 40
LINES = [line.split("|")[0] for line in PAIRS.splitlines()]


def prepared(folder: Path) -> Path:
    """What the tool makes of the pairs, with fairseq-preprocess in this process."""
    text = folder / "text"
    text.mkdir()
    for split, lines in (("train", PAIRS), ("valid", PAIRS), ("test", PAIRS)):
        for language, side in (("de", 0), ("en", 1)):
            sides = [pair.split("|")[side] for pair in lines.splitlines()]
            (text / f"{split}.{language}").write_text("".join(f"{line}\n" for line in sides), encoding="utf-8")

    def in_this_process(arguments: list[str], destination: Path) -> None:
        preprocess.main(options.get_preprocessing_parser().parse_args([*arguments, "--destdir", str(destination)]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "fairseq_preprocess", in_this_process)
        words = [word for split in ("train", "valid", "test") for word in (f"--{split}", str(text / split))]
        out = ["--out", str(folder / "data"), "--vocab-size", "120", "--joined-dictionary"]
        prepare.main([*words, "--source", "de", "--target", "en", *out])
    return folder / "data"


def train(data: Path, path: Path, seed: int, steps: int) -> None:
    """A checkpoint of fairseq's form after ``steps`` of full batches."""
    torch.manual_seed(seed)
    values = {**SIZES, **METHODS, "dropout": 0.0, "share_all_embeddings": True, "max_source_positions": POSITIONS}
    values |= {"source_lang": "de", "target_lang": "en"}
    cfg = configuration("transformer_ext", values, data=data)
    task = tasks.setup_task(cfg.task)
    task.load_dataset("train")
    pairs = task.dataset("train")
    sample = pairs.collater([pairs[index] for index in range(len(pairs))])
    model = task.build_model(cfg.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        logits, _ = model(**sample["net_input"])
        loss = F.cross_entropy(logits.flatten(0, 1), sample["target"].flatten(), ignore_index=1, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = {"cfg": OmegaConf.to_container(cfg), "args": None, "model": model.state_dict()}
    history = [{"num_updates": steps, "optimizer_name": "FairseqAdam", "lr_scheduler_state": {}}]
    extra = {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}}
    torch.save({**state, "optimizer_history": history, "extra_state": extra}, path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with ``data``, and ``model`` with two checkpoints."""
    folder = tmp_path_factory.mktemp("translate")
    data = prepared(folder)
    (folder / "model").mkdir()
    train(data, folder / "model" / "checkpoint_best.pt", seed=1, steps=60)
    train(data, folder / "model" / "checkpoint_last.pt", seed=2, steps=30)
    return folder


@pytest.fixture(scope="session")
def translator(trained):
    return Translator.from_pretrained(trained / "model")


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the best checkpoint, and of the data, for a test to spoil."""
    (tmp_path / "model").mkdir()
    shutil.copy(trained / "model" / "checkpoint_best.pt", tmp_path / "model")
    shutil.copytree(trained / "data", tmp_path / "data")
    return tmp_path

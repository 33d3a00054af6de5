"""States of an encoder beside those of transformers, what is cached of them, and models that were trained on them."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import safetensors.torch
import torch
from transformers import AutoModel, AutoTokenizer, T5Config

import fairseq_ext.training
from fairseq_ext.training.errors import CheckpointError, InputError, OptionError
from fairseq_ext.training.locks import locked
from graph.label_graph.__main__ import main
from graph.label_graph.encoder import Encoder, fingerprint_of
from graph.label_graph.model import HierarchicalAttentionNetwork
from tests.graph.label_graph.test_command import TOPICS, write_topics
from tests.vision_language.muka.texts import WORDS as GROUPS
from tests.vision_language.muka.texts import write_encoder

WORDS = tuple(sorted({*" ".join(TOPICS.values()).split()} - {*" ".join(GROUPS.values()).split()}))
TEXTS = [["tasty soup", "rude waiter served the bread"], [], ["garden"], ["cosy", "music room", "friendly tasty meal"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_encoder(tmp_path_factory.mktemp("encoder"), extra=WORDS))


def encoder_of(folder, **settings):
    return Encoder(folder, fingerprint_of(folder), **settings)


def encoded(encoder, max_reviews=40, max_words=20, **more):
    reviews = [[encoder.tokenize(text) for text in texts] for texts in TEXTS]
    return encoder.encode(reviews, max_reviews, max_words, **more)


@pytest.mark.parametrize("pooling", ["mean", "none"])
@pytest.mark.parametrize("num_layers", [0, 1])
def test_states_are_those_of_transformers(folder, pooling, num_layers):
    states = encoded(encoder_of(folder, pooling=pooling, num_layers=num_layers), max_reviews=2, max_words=3)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    layers = model.config.num_hidden_layers
    vectors = states[torch.arange(4)]
    assert len(states) == 4 and vectors.dtype == torch.float32
    assert vectors.shape == (4, 2, 1 if pooling == "mean" else 5, 16)
    for sample, texts in enumerate(TEXTS):
        for review in range(2):
            got = vectors[sample, review]
            got = got[(got != 0).any(-1)]
            if review >= len(texts):
                assert not len(got)
                continue
            read = tokenizer(texts[review], return_tensors="pt", truncation=True, max_length=3 + 2)
            with torch.no_grad():
                wanted = model(**read, output_hidden_states=True).hidden_states[num_layers or layers][0]
            wanted = wanted.mean(0, keepdim=True) if pooling == "mean" else wanted
            wanted = (wanted - wanted.mean(-1, keepdim=True)) / wanted.std(-1, correction=0, keepdim=True)
            torch.testing.assert_close(got, wanted, rtol=2e-3, atol=2e-3)
    assert states[torch.tensor([1, 2])].shape[2] == (1 if pooling == "mean" else 3)


def test_the_network_reads_vectors_as_it_reads_words():
    """Word vectors, by ids or as they are, with gaps and a sample without words."""
    torch.manual_seed(0)
    vectors = torch.randn(9, 6)
    vectors[0] = 0.0
    by_ids = HierarchicalAttentionNetwork(9, 3, 6, 4, 4, vectors=vectors).eval()
    direct = HierarchicalAttentionNetwork(None, 3, 6, 4, 4).eval()
    direct.load_state_dict({k: v for k, v in by_ids.state_dict().items() if k != "embedding.weight"})
    ids = torch.tensor([[[1, 2, 3], [0, 0, 0], [4, 0, 0]], [[0, 0, 0]] * 3, [[5, 6, 0], [7, 8, 1], [2, 0, 0]]])
    for one, other in zip(by_ids(ids, need_weights=True), direct(vectors[ids], need_weights=True), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"vectors must be numbers \(samples, reviews, words, D\), got torch.int64"):
        direct(ids)


def test_states_are_computed_once_and_damaged_ones_again(folder, tmp_path, monkeypatch, capsys):
    first = encoded(encoder_of(folder), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    computed = []
    real = Encoder._computed
    monkeypatch.setattr(Encoder, "_computed", lambda *words: computed.append(1) or real(*words))
    again = encoded(encoder_of(folder), cache=tmp_path)
    assert not computed and torch.equal(again.table, first.table) and again.digest == first.digest
    file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(encoded(encoder_of(folder), cache=tmp_path).table, first.table) and len(computed) == 1
    assert f"{file}: damaged" in capsys.readouterr().err
    encoded(encoder_of(folder), cache=tmp_path)
    assert len(computed) == 1


def test_commands_that_share_a_cache_write_one_after_the_other(folder, tmp_path, monkeypatch):
    saved = []

    def save(tensors, path, real=safetensors.torch.save_file):
        with pytest.raises(BlockingIOError), locked(tmp_path, wait=False):
            pass
        saved.append(path)
        real(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", save)
    encoded(encoder_of(folder), cache=tmp_path)
    with locked(tmp_path, wait=False):
        assert len(saved) == len(list(tmp_path.iterdir())) == 1


def test_states_of_another_encoder_or_reading_are_other_states(folder, tmp_path):
    write_encoder(tmp_path / "other", extra=WORDS, seed=1)
    settings = [{"num_layers": 1}, {"pooling": "none"}, {"precision": "bfloat16"}]
    states = [encoded(encoder_of(folder, **chosen), cache=tmp_path / "c") for chosen in [{}, *settings]]
    states.append(encoded(encoder_of(folder), max_words=1, cache=tmp_path / "c"))
    states.append(encoded(encoder_of(str(tmp_path / "other")), cache=tmp_path / "c"))
    assert len({part.digest for part in states}) == len(list((tmp_path / "c").iterdir())) == len(states) == 6
    shutil.copytree(folder, tmp_path / "same")
    assert encoded(encoder_of(str(tmp_path / "same"))).digest == states[0].digest


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A model on the states of every token, and the copy of the encoder that it names."""
    root = tmp_path_factory.mktemp("trained")
    shutil.copytree(folder, root / "encoder")
    words = "--encoder-pooling none --cell none --attention-size 16 --batch-size 8 --lr 0.02 --epochs 20 --start-eval 1"
    command = ["train", "--data", str(write_topics(root)), "--out", str(root / "out"), "--device", "cpu"]
    main([*command, "--encoder", str(root / "encoder"), *words.split()])
    return root


def test_the_results_of_an_encoder_give_its_options_back(trained):
    results = trained / "out" / "results.json"
    before = results.read_bytes()
    main(["train", "--config", str(results), "--out", str(trained / "out"), "--device", "cpu"])
    assert results.read_bytes() == before


def test_a_model_on_an_encoder_labels_texts_and_repeats_its_metrics(trained, tmp_path, capsys):
    results = json.loads((trained / "out" / "results.json").read_text())
    run = results["runs"]["seed1"]
    assert run["one_error"] < 0.1 and run["coverage"]["train"]["max_words_of_most"] == 9  # with punctuation marks
    model = ["--model", str(trained / "out" / "seed1" / "model.pt")]
    main(["evaluate", *model, "--data", results["settings"]["data"]])
    printed = json.loads(capsys.readouterr().out)
    assert {name: printed[name] for name in ("micro_f1", "one_error")} == pytest.approx(
        {name: run[name] for name in ("micro_f1", "one_error")}
    )
    (tmp_path / "a.txt").write_text("tasty soup, friendly waiter\n\nThe cosy, garden. And rude waiter!\n")
    main(["predict", *model, str(tmp_path / "a.txt")])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    tasty, _, cosy = (list(row["probabilities"]) for row in rows)
    assert set(tasty[:2]) == {"food", "staff"} and set(cosy[:2]) == {"place", "staff"}


def test_an_encoder_that_has_changed_is_refused(trained, tmp_path):
    (tmp_path / "a.txt").write_text("tasty soup\n")
    shutil.copytree(trained / "encoder", tmp_path / "kept")
    try:
        write_encoder(trained / "encoder", extra=WORDS, seed=1)
        with pytest.raises(CheckpointError, match=r"encoder: another encoder than that of the training"):
            main(["predict", "--model", str(trained / "out" / "seed1" / "model.pt"), str(tmp_path / "a.txt")])
    finally:
        shutil.copytree(tmp_path / "kept", trained / "encoder", dirs_exist_ok=True)


def test_an_encoder_may_lie_elsewhere(trained, tmp_path, capsys):
    """Where it is the same one; a model that has none takes none."""
    (tmp_path / "a.txt").write_text("tasty soup, friendly waiter\n")
    words = ["predict", "--model", str(trained / "out" / "seed1" / "model.pt"), str(tmp_path / "a.txt")]
    main(words)
    told = capsys.readouterr().out
    moved = str(shutil.move(trained / "encoder", tmp_path / "moved"))
    try:
        with pytest.raises(OptionError, match=r"^--encoder: .*/encoder is not a folder; .*model.pt reads the encoder"):
            main(words)
        main([*words, "--encoder", moved])
        assert capsys.readouterr().out == told
        write_encoder(tmp_path / "other", extra=WORDS, seed=1)
        with pytest.raises(CheckpointError, match=r"other: another encoder than that of the training"):
            main([*words, "--encoder", str(tmp_path / "other")])
    finally:
        shutil.move(moved, trained / "encoder")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--encoder absent", r"--encoder: absent is not a folder"),
        ("--encoder data", r"data: no config.json in it"),
        ("--encoder decoder", r"--encoder: decoder has a decoder; only encoders are read"),
        ("--encoder pickled", r"pickled: pytorch_model.bin could run code when loaded"),
        ("--encoder encoder --num-layers 3", r"--num-layers: encoder has 2 layers, got 3"),
        ("--encoder encoder --data blank", r"--encoder: its tokenizer finds no word in blank"),
        (
            "--encoder encoder --unmasked-attention",
            r"^--unmasked-attention: not with --encoder, whose states are padded",
        ),
        ("--encoder encoder --max-words 31", r"--max-words: encoder reads at most 30 tokens of a text, got 31"),
    ],
)
def test_bad_encoders_end_with_one_line(folder, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    for name in ("data", "blank"):
        (tmp_path / name).mkdir()
    write_topics(tmp_path / "data")
    for split in ("train", "valid", "test"):
        (tmp_path / "blank" / f"{split}.tsv").write_text("food\t \u200a\n")
    shutil.copytree(folder, "encoder")
    shutil.copytree(folder, "decoder")
    T5Config(d_model=8, num_layers=1, num_heads=1, d_kv=4, d_ff=8).save_pretrained("decoder")
    shutil.copytree(folder, "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=message) as refusal:
        main(["train", "--data", "data", *words.split()])
    assert "\n" not in str(refusal.value) and not (tmp_path / "runs").exists()


def test_without_the_packages_of_hugging_face(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "fairseq_ext.training.pretrained")
    monkeypatch.delattr(fairseq_ext.training, "pretrained")
    with pytest.raises(
        OptionError, match=r"the package transformers is not installed: pip install 'fairseq-ext\[vl\]'"
    ):
        fingerprint_of(folder)

"""Logits and scores of teachers: the values, when they are computed, and files that do not match or are damaged."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from fairseq_ext.training.errors import OptionError
from tests.vision_language.muka.texts import write_classifier
from vision_language.muka import cache as caching
from vision_language.muka.cache import TeacherCache, single_pass_scores
from vision_language.muka.logits import predict_logits
from vision_language.muka.models import load_classifier
from vision_language.muka.text_files import Texts, read_file
from vision_language.muka.tokens import Tokens
from vision_language.muka.uncertainty import SCORES, mc_dropout_probabilities, teacher_scores


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def texts(world):
    return read_file(world.data / "test.tsv")[range(15)]


@pytest.fixture
def teacher(tmp_path):
    return load_classifier(write_classifier(tmp_path / "teacher", ["music", "sport", "travel"]))


@pytest.fixture
def computed(monkeypatch):
    """What was computed since the test began."""
    calls = []
    for name in ("predict_logits", "mc_dropout_probabilities"):
        function = getattr(caching, name)
        monkeypatch.setattr(
            caching, name, lambda *a, _name=name, _function=function, **k: (calls.append(_name), _function(*a, **k))[1]
        )
    return calls


def store(tmp_path, accelerator, **settings):
    return TeacherCache(tmp_path / "cache", accelerator, **{"max_length": 16, "batch_size": 4} | settings)


def test_logits_are_in_the_order_of_the_texts(teacher, texts, accelerator, tmp_path):
    logits = store(tmp_path, accelerator).logits(teacher, texts, "test")
    with torch.no_grad():
        alone = [
            teacher.model(**teacher.tokenizer(text, truncation=True, max_length=16, return_tensors="pt")).logits[0]
            for text in texts.texts
        ]
    torch.testing.assert_close(logits, torch.stack(alone))


def test_the_model_is_left_without_dropout(teacher, texts, accelerator):
    tokens = Tokens(texts.texts, teacher.tokenizer, 16)
    teacher.model.train()
    assert torch.equal(*(predict_logits(teacher.model, tokens, 4, accelerator) for _ in range(2)))


def test_scores_are_those_of_the_passes(teacher, texts, accelerator, tmp_path):
    few = texts[[0, 1, 2]]
    scores = store(tmp_path, accelerator).scores(teacher, few, "few", passes=5, seed=7)
    tokens = Tokens(few.texts, teacher.tokenizer, 16)
    (rows,) = tokens.in_order(4)
    seed = int(np.random.SeedSequence([7, 0]).generate_state(1)[0])
    probabilities = mc_dropout_probabilities(teacher.model, tokens.batch(rows), 5, seed=seed)
    for kind in SCORES:
        torch.testing.assert_close(scores[kind][torch.from_numpy(rows)], teacher_scores(probabilities, kind))


def test_nothing_is_computed_twice(teacher, texts, accelerator, tmp_path, computed):
    first = [store(tmp_path, accelerator).all_scores([teacher], texts, "x", kind, passes=3) for kind in SCORES]
    assert computed == ["mc_dropout_probabilities"] * 4  # of four batches, for all kinds together
    logits = store(tmp_path, accelerator).all_logits([teacher], texts, "x")
    del computed[:]
    again = [store(tmp_path, accelerator).all_scores([teacher], texts, "x", kind, passes=3) for kind in SCORES]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(store(tmp_path, accelerator).all_logits([teacher], texts, "x")[0], logits[0])
    assert not computed


def test_teachers_of_one_name_do_not_share_a_file(teacher, texts, accelerator, tmp_path, computed):
    other = load_classifier(write_classifier(tmp_path / "other" / "teacher", ["a", "b"], seed=1))
    for _ in range(2):
        sizes = [logits.size(1) for logits in store(tmp_path, accelerator).all_logits([teacher, other], texts, "x")]
        assert sizes == [3, 2] and len(computed) == 2


def test_texts_are_tokenized_once_for_all_teachers_of_a_tokenizer(teacher, texts, accelerator, tmp_path, monkeypatch):
    """Wherever their folders are; a teacher with another tokenizer reads its own tokens."""
    more = {"same": (["a", "b"], ()), "other": (["c", "d"], ("zig", "zag"))}
    written = [write_classifier(tmp_path / name, labels, extra=extra) for name, (labels, extra) in more.items()]
    teachers = [teacher, *map(load_classifier, written)]
    alone = [store(tmp_path / str(t), accelerator).logits(one, texts, "x") for t, one in enumerate(teachers)]
    kind, seen = type(teacher.tokenizer), []
    tokenize = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda own, batch, **k: (seen.extend(batch), tokenize(own, batch, **k))[1])
    for _ in ("computed", "on disk"):
        del seen[:]
        made = store(tmp_path, accelerator)
        assert all(map(torch.equal, made.all_logits(teachers, texts, "x"), alone))
        made.all_scores(teachers, texts, "x", passes=2)
        assert seen == [*texts.texts] * 2
        few = texts[range(4)]
        assert len(made.logits(teacher, few, "few")) == 4 and seen == [*texts.texts] * 2 + [*few.texts]


CHANGES = {
    "weights": lambda c: c["teacher"].model.classifier.weight.data.add_(1),
    "dropout": lambda c: c["teacher"].model.config.update({"attention_probs_dropout_prob": 0.3}),
    "tokenizer": lambda c: c["teacher"].tokenizer.add_tokens(["zig"]),
    "texts": lambda c: c.update(texts=c["texts"][[1, 0, *range(2, 15)]]),
    "length": lambda c: c.update(max_length=12),
    "batches": lambda c: c.update(batch_size=5),
    "passes": lambda c: c.update(passes=4),
    "seed": lambda c: c.update(seed=2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_computed_again_and_this_is_said(
    change, teacher, texts, accelerator, tmp_path, computed, capsys
):
    case = {"teacher": teacher, "texts": texts, "max_length": 16, "batch_size": 4, "passes": 3, "seed": 1}

    def scores():
        loaded = load_classifier(teacher.folder)
        made = store(tmp_path, accelerator, max_length=case["max_length"], batch_size=case["batch_size"])
        return made.scores(loaded, case["texts"], "x", case["passes"], case["seed"])["entropy"]

    before = scores()
    assert computed and "computed again" not in capsys.readouterr().err
    del computed[:]
    CHANGES[change](case)
    if change in ("weights", "dropout"):
        teacher.model.save_pretrained(teacher.folder)
    if change == "tokenizer":
        edited = json.loads((teacher.folder / "tokenizer.json").read_text())
        words = edited["model"]["vocab"]
        words["the"], words["of"] = words["of"], words["the"]
        (teacher.folder / "tokenizer.json").write_text(json.dumps(edited))
    after = scores()
    assert computed and "x-scores.npz: of other teachers, texts or settings; computed again" in capsys.readouterr().err
    if change != "length":  # few texts are so long
        assert not torch.equal(before, after)
    del computed[:]
    assert torch.equal(scores(), after) and not computed


@pytest.mark.parametrize(
    ("change", "logits_too"),
    [
        (lambda t: t.model.classifier.weight.data.mul_(-1), True),
        (lambda t: t.model.bert.encoder.layer[0].attention.self.query.weight.data.zero_(), True),
        (lambda t: setattr(t.model.config, "hidden_act", "relu"), True),
        (lambda t: setattr(t.tokenizer, "padding_side", "left"), True),
        (lambda t: setattr(t.model.dropout, "p", 0.5), False),
    ],
)
def test_a_model_that_changed_in_memory_is_asked_again(
    teacher, texts, accelerator, tmp_path, computed, change, logits_too
):
    """What counts is what the model is, not the folder that it came from."""
    made = store(tmp_path, accelerator)
    made.logits(teacher, texts, "x"), made.scores(teacher, texts, "x", passes=3)
    del computed[:]
    change(teacher)
    made.logits(teacher, texts, "x"), made.scores(teacher, texts, "x", passes=3)
    assert ("predict_logits" in computed) == logits_too and "mc_dropout_probabilities" in computed
    del computed[:]
    shutil.move(teacher.folder, tmp_path / "elsewhere")
    made.logits(teacher, texts, "x"), made.scores(teacher, texts, "x", passes=3)
    assert not computed


def test_the_dropout_of_the_passes_is_part_of_the_key(teacher, texts, accelerator, tmp_path, computed):
    made = store(tmp_path, accelerator)
    own, more = (made.scores(teacher, texts, "x", passes=3, dropout=p)["entropy"] for p in (None, 0.6))
    assert len(computed) == 8 and not torch.equal(own, more)


def test_another_kind_of_device_or_number_format_is_another_key(teacher, texts, tmp_path, monkeypatch):
    keys = []
    monkeypatch.setattr(caching, "cached_arrays", lambda path, depends_on, *_: keys.append(depends_on) or {})
    for kind, precision in (("cpu", "no"), ("cuda", "no"), ("cpu", "bf16")):
        made = SimpleNamespace(device=torch.device(kind), mixed_precision=precision)
        store(tmp_path, made).scores(teacher, texts, "x")
    assert keys[1] == keys[0] | {"device": "cuda"} != keys[0]
    assert keys[2] == keys[0] | {"mixed_precision": "bf16"} != keys[0]


def test_each_batch_has_masks_of_its_own(teacher, accelerator, tmp_path):
    """Equal texts, in two batches: within one the masks differ from row to row, and from one to the other."""
    equal = Texts(("the goal of the race",) * 8, None, "made up")
    scores = store(tmp_path, accelerator).scores(teacher, equal, "x", passes=3)["entropy"]
    assert len(set(scores.tolist())) == 8


def test_what_one_process_lacks_all_compute(tmp_path):
    """Else it would wait for the others, who have read their files."""
    path, asked = tmp_path / "x.npz", []

    def compute():
        asked.append(1)
        return {"logits": np.ones(2)}

    for found in (0, 1, 2):  # processes that have the file; this one does from the second time on
        processes = SimpleNamespace(
            device="cpu",
            num_processes=2,
            is_main_process=True,
            reduce=lambda hit, how, found=found: torch.tensor(found),
        )
        assert caching.cached_arrays(path, {}, compute, processes)["logits"].tolist() == [1, 1]
    assert len(asked) == 2


@pytest.mark.parametrize("no_mc", [False, True])
def test_scores_are_those_that_the_options_ask_for(tmp_path, monkeypatch, no_mc):
    made, asked = store(tmp_path, None), []
    monkeypatch.setattr(made, "all_scores", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(caching, "single_pass_scores", lambda *arguments: asked.append(arguments))
    options = {"passes": 5, "seed": 3, "score": "variance", "temperature": 2.0, "no_mc": no_mc}
    for dropout in (0.0, 0.3):
        made.scores_for(SimpleNamespace(**options, teacher_dropout=dropout), "teachers", "logits", "texts", "valid")
    if no_mc:
        assert asked == [("logits", "variance", 2.0)] * 2
    else:
        assert asked == [("teachers", "texts", "valid", "variance", 5, 3, dropout) for dropout in (None, 0.3)]


def test_labels_do_not_matter(teacher, texts, accelerator, tmp_path, computed):
    store(tmp_path, accelerator).logits(teacher, texts, "x")
    store(tmp_path, accelerator).logits(teacher, Texts(texts.texts, None, "elsewhere"), "x")
    assert len(computed) == 1


@pytest.mark.parametrize("damage", ["cut", "text", "pickle", "foreign"])
def test_damaged_files_are_replaced(damage, teacher, texts, accelerator, tmp_path, capsys):
    logits = store(tmp_path, accelerator).logits(teacher, texts, "x")
    path = tmp_path / "cache" / "x-logits.npz"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif damage == "text":
        path.write_text("nothing")
    elif damage == "pickle":
        np.savez(path, key=np.array({"run": print}, dtype=object))
    else:
        np.savez(path, logits=np.zeros(3))
    assert torch.equal(store(tmp_path, accelerator).logits(teacher, texts, "x"), logits)
    said = capsys.readouterr().err
    assert f"{path}: {'of other' if damage == 'foreign' else 'damaged'}" in said and said.count("\n") == 1
    store(tmp_path, accelerator).logits(teacher, texts, "x")
    assert not capsys.readouterr().err


def test_single_pass_scores():
    logits = [torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0, 1.0]])]
    for temperature in (1.0, 3.0):
        expected = [float(teacher_scores((z / temperature).softmax(-1)[None])) for z in logits]
        assert single_pass_scores(logits, temperature=temperature)[0].tolist() == pytest.approx(expected)


def test_a_teacher_without_dropout_is_named(teacher, texts, accelerator, tmp_path):
    teacher.model.config.update({"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0})
    teacher.model.save_pretrained(teacher.folder)
    with pytest.raises(OptionError, match=r"teacher: 16 Monte-Carlo passes: the model has no dropout"):
        store(tmp_path, accelerator).scores(load_classifier(teacher.folder), texts, "x")
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written(teacher, texts, accelerator, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OptionError, match="--cache: cannot write"):
        store(tmp_path, accelerator).logits(teacher, texts, "x")


def test_texts_may_be_too_long(teacher, texts, accelerator, tmp_path):
    with pytest.raises(OptionError, match=r"--max-length: .* reads at most 32 tokens, got 33"):
        store(tmp_path, accelerator, max_length=33).logits(teacher, texts, "x")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert len(store(tmp_path, accelerator, max_length=0).logits(teacher, texts, "x")) == len(texts)

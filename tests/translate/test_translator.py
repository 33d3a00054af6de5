"""``fairseq_ext.Translator``: fairseq-generate's translations, from raw text, and one line for what cannot be used."""

from __future__ import annotations

import ast
import itertools
import json
import os
import random
import re
import shutil

import pytest
import torch
from fairseq import options
from fairseq_cli import generate

from fairseq_ext import Translator
from fairseq_ext.training.errors import InputError, OptionError
from fairseq_ext.translate.long_lines import parts
from fairseq_ext.translate.options import Decoding
from tests.helpers import python_blocks
from tests.translate.conftest import LINES, METHODS, POSITIONS, SIZES

BEST, BOTH = ("checkpoint_best.pt",), ("checkpoint_best.pt", "checkpoint_last.pt")


def test_the_readme_translates(trained, tmp_path, monkeypatch, capsys):
    """As pasted, where the quickstart's model lies."""
    (code,) = (code for code in python_blocks("README.md") if "runs/quickstart" in code)
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "runs" / "quickstart" / "combined").symlink_to(trained / "model")
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "__main__"})
    assert len(ast.literal_eval(capsys.readouterr().out)) == 2


def generated(folder, checkpoints, capsys, *more):
    """Sentence -> hypotheses, each ``(text, score, token scores, alignment)``, as fairseq-generate prints them."""
    path = os.pathsep.join(str(folder / "model" / name) for name in checkpoints)
    words = [str(folder / "data"), "--path", path, "--beam", "4", "--nbest", "2", "--remove-bpe", "sentencepiece"]
    words += ["--print-alignment", "hard", "--cpu", "--batch-size", "7", "--no-progress-bar", *more]
    capsys.readouterr()
    generate.main(options.parse_args_and_arch(options.get_generation_parser(), words))
    rows = {}
    for number, rest in re.findall(r"^[HPA]-(\d+)\t(.*)$", capsys.readouterr().out, re.MULTILINE):
        rows.setdefault(int(number), []).append(rest)
    return {
        number: [
            (
                head.split("\t")[1],
                float(head.split("\t")[0]),
                [float(score) for score in scores.split()],
                [tuple(map(int, link.split("-"))) for link in links.split()],
            )
            for head, scores, links in zip(lines[::3], lines[1::3], lines[2::3], strict=True)
        ]
        for number, lines in rows.items()
    }


@pytest.mark.parametrize("checkpoints", [BEST, BOTH], ids=["one", "ensemble"])
def test_equal_to_fairseq_generate(trained, capsys, checkpoints):
    translator = Translator.from_pretrained(trained / "model", checkpoints)
    decoding = Decoding(beam=4, nbest=2, lenpen=0.6)
    translations = translator.translations(LINES, decoding, alignment=True)
    expected = generated(trained, checkpoints, capsys, "--lenpen", "0.6")
    assert len(translations) == len(expected) == 40
    assert len({translation.text for translation in translations}) > 20, "a model that says one thing tests nothing"
    for number, translation in enumerate(translations):
        assert len(translation.hypotheses) == len(expected[number]) == 2
        for hypothesis, (text, score, scores, links) in zip(translation.hypotheses, expected[number], strict=True):
            assert hypothesis.text == text and hypothesis.alignment == links
            assert hypothesis.score == pytest.approx(score, abs=1e-4)
            assert hypothesis.token_scores == pytest.approx(scores, abs=1e-3)
            assert len(hypothesis.tokens) == len(scores) and hypothesis.tokens[-1] == "</s>"


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_padding_stands_where_it_did_in_training(translator, copied, monkeypatch, left):
    path = copied / "model" / "checkpoint_best.pt"
    saved = torch.load(path)
    saved["cfg"]["task"]["left_pad_source"] = left
    torch.save(saved, path)
    padded = Translator.from_pretrained(copied / "model", data=copied / "data")
    batches, step = [], padded.task.inference_step
    monkeypatch.setattr(
        padded.task, "inference_step", lambda *given: batches.append(given[2]["net_input"]) or step(*given)
    )
    lines = [LINES[0], " ".join(LINES[1:3])]
    found = padded.translations(lines, Decoding(beam=2), alignment=True)
    (net_input,) = batches
    short = net_input["src_tokens"][net_input["src_lengths"].argmin()]
    pad = padded.source.pad()
    assert (short[0] == pad, short[-1] == pad) == (left, not left)
    for translation, expected in zip(
        found, translator.translations(lines, Decoding(beam=2), alignment=True), strict=True
    ):
        assert translation.text == expected.text
        torch.testing.assert_close(translation.hypotheses[0].attention, expected.hypotheses[0].attention)


def test_order_blank_lines_and_batches(translator, trained):
    shuffled = [*LINES[:9], "", " \t\u2028 "]
    random.Random(1).shuffle(shuffled)
    together = translator.translate(shuffled)
    assert together == [translator.translate([line])[0] for line in shuffled]
    assert together == translator.translate(shuffled, batch_tokens=1)
    assert [line.strip() == "" for line in shuffled] == [text == "" for text in together]
    assert translator.translate([]) == []
    messy = "Guten".lower() + "\r\n \u00a0 morgen\x07 ."
    assert translator.translate([messy]) == translator.translate(["guten morgen ."])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_inference_dtypes(trained, translator, dtype):
    other = Translator.from_pretrained(trained / "model", inference_dtype=dtype)
    assert [model.inference_dtype for model in (*other.models, *translator.models)] == [dtype, "float32"]
    pairs = zip(other.translate(LINES), translator.translate(LINES), strict=True)
    assert sum(one == another for one, another in pairs) >= (40 if dtype == "float32" else 30)


def test_long_sentences(translator, capsys):
    short = [line for line in LINES if len(translator._encode(line).split()) > POSITIONS // 3][:3]
    line = " ".join(short)
    assert len(translator._encode(line).split()) >= POSITIONS
    assert translator.translate(["guten morgen .", line])[1] == ""
    said = capsys.readouterr().err
    assert f"sentence 1: {len(translator._encode(line).split())} subwords, the model reads 39: skipped" in said
    (cut,) = translator.translations([line], Decoding(long="truncate"))
    assert cut.long == "truncate" and len(cut.hypotheses) == 1
    (split,) = translator.translations([line], Decoding(long="split", nbest=2), alignment=True)
    pieces = parts(translator._encode(line).split(), POSITIONS - 1, "sentencepiece")
    alone = translator.translate(["".join(piece).replace("\u2581", " ") for piece in pieces])
    assert len(pieces) > 1 and split.text == " ".join(alone) and len(split.hypotheses) == 2
    best = split.hypotheses[0]
    assert max(source for source, _ in best.alignment) < len(split.source_tokens)
    assert best.tokens.count("</s>") == len(pieces) and max(target for _, target in best.alignment) < len(best.tokens)
    assert best.score == pytest.approx(sum(best.token_scores) / len(best.tokens))
    assert best.attention.shape == (len(best.tokens), len(split.source_tokens) + len(pieces))
    assert torch.count_nonzero(best.attention[: best.tokens.index("</s>") + 1, len(pieces[0]) + 1 :]) == 0


def test_attention_is_that_of_the_model(translator):
    """Of every hypothesis, whatever stood beside it in the batch; of top-k, what is not selected weighs nothing."""
    translations = translator.translations(LINES[:12], Decoding(nbest=2), alignment=True)
    assert len({len(translation.source_tokens) for translation in translations}) > 3
    selected = METHODS["attention_topk"]
    for translation, line in zip(translations, LINES, strict=False):
        (alone,) = translator.translations([line], Decoding(nbest=2), alignment=True)
        for hypothesis, other in zip(translation.hypotheses, alone.hypotheses, strict=True):
            weights, size = hypothesis.attention, len(translation.source_tokens)
            assert weights.shape == (len(hypothesis.tokens), size + 1)
            torch.testing.assert_close(weights, other.attention)
            torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)))
            assert (weights > 0).sum(-1).max() <= selected * SIZES["decoder_attention_heads"]
            inside = [(source, target) for source, target in hypothesis.alignment if source < size]
            assert all(weights[target, :size].argmax() == source for source, target in inside)
    assert translator.translations(LINES[:1])[0].hypotheses[0].attention is None


def test_parts_of_any_line():
    draw = random.Random(3)
    for _ in range(300):
        most, bpe = draw.randint(1, 9), draw.choice(["sentencepiece", "subword-nmt", "none"])
        words = ["\u2581a", "b", "\u2581c.", "."] if bpe == "sentencepiece" else ["a@@", "b", "c", "."]
        symbols = draw.choices(words, k=draw.randint(1, 30))
        pieces = parts(symbols, most, bpe)
        assert list(itertools.chain(*pieces)) == symbols and all(1 <= len(piece) <= most for piece in pieces)
    assert parts("\u2581a b \u2581c . \u2581d e f \u2581g".split(" "), 6, "sentencepiece") == [
        ["\u2581a", "b", "\u2581c", "."],
        ["\u2581d", "e", "f", "\u2581g"],
    ]
    assert parts(["a@@", "b", "c@@", "d@@", "e"], 4, "subword-nmt") == [["a@@", "b"], ["c@@", "d@@", "e"]]


def test_translations_that_end_at_the_limit_are_told(translator):
    for limit in (2, 200):
        for translation in translator.translations(LINES[:5], Decoding(max_len=limit)):
            assert translation.cut == (len(translation.hypotheses[0].tokens) == limit + 1)
            assert bool(list(translator.problems(translation))) == translation.cut
    assert any(translation.cut for translation in translator.translations(LINES[:5], Decoding(max_len=2)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beam": 0}, "--beam must be at least 1"),
        ({"beam": 5000}, "--beam 5000: must be below the "),
        ({"nbest": 6}, "--nbest 6: must be at most --beam 5"),
        ({"long": "cut"}, "--long: 'cut' is not one of skip, truncate, split"),
        ({"max_len": 0}, "--max-len must be at least 1"),
        ({"batch_tokens": 0}, "--batch-tokens must be at least 1"),
        ({"lenpen": float("nan")}, "--lenpen must be finite"),
    ],
)
def test_options_out_of_range(translator, values, message):
    with pytest.raises(OptionError, match=message):
        translator.translate(LINES[:1], **values)
    with pytest.raises(OptionError, match="takes a list"):
        translator.translate("one sentence")


def test_the_text_settings_are_the_given_ones_then_those_beside_the_model_then_the_trained_ones(copied, trained):
    model, elsewhere = copied / "model", copied / "elsewhere"
    before = Translator.from_pretrained(model)
    assert before.preparation.folder == trained / "data"
    for name in ("prepare.json", "dict.de.txt", "dict.en.txt", "sentencepiece.bpe.model"):
        shutil.copy(copied / "data" / name, model)
    assert Translator.from_pretrained(model).preparation.folder == model
    shutil.move(copied / "data", elsewhere)
    given = Translator.from_pretrained(model, data=elsewhere)
    assert given.preparation.folder == elsewhere and given.translate(LINES[:3]) == before.translate(LINES[:3])
    shutil.copy(model / "checkpoint_best.pt", model / "checkpoint_average.pt")
    assert Translator.from_pretrained(model).files[0].name == "checkpoint_average.pt"


def change(copied, **parts):
    """The checkpoint with other parts; a name of two parts is one of its configuration."""
    path = copied / "model" / "checkpoint_best.pt"
    state = torch.load(path, weights_only=True)
    for name, value in parts.items():
        group, _, option = name.partition("__")
        if option:
            state["cfg"][group][option] = value
        else:
            state[name] = value
    torch.save(state, path)


def write(name, content):
    def damage(copied):
        (copied / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def settings(**values):
    def damage(copied):
        path = copied / "data" / "prepare.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps({"settings": record["settings"] | values}))

    return damage


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile",)


def saved(value):
    return lambda copied: torch.save(value, copied / CHECKPOINT)


def changed(**parts):
    return lambda copied: change(copied, **parts)


def without(name):
    return lambda copied: (copied / name).unlink()


def renamed(*names):
    def damage(copied):
        content = (copied / CHECKPOINT).read_bytes()
        (copied / CHECKPOINT).unlink()
        for name in names:
            (copied / name).write_bytes(content)

    return damage


def truncated(copied):
    (copied / CHECKPOINT).write_bytes((copied / CHECKPOINT).read_bytes()[:9999])


def not_finite(copied):
    state = torch.load(copied / CHECKPOINT, weights_only=False)
    state["model"]["encoder.layers.0.fc1.bias"][0] = torch.inf
    torch.save(state, copied / CHECKPOINT)


CHECKPOINT, DICTIONARY, PREPARATION = "model/checkpoint_best.pt", "data/dict.de.txt", "data/prepare.json"
NO_CHECKPOINT = "not a checkpoint of fairseq"
# What is done to the folder, the place that the message names, and what it says.
DAMAGES = {
    "no folder": (lambda copied: shutil.rmtree(copied / "model"), "model", "no such folder of checkpoints"),
    "no checkpoint": (without(CHECKPOINT), "model", "it holds no .pt file"),
    "others": (renamed("model/a.pt", "model/b.pt"), "model", "choose with --checkpoints from a.pt, b.pt"),
    "truncated": (truncated, CHECKPOINT, "truncated"),
    "hostile": (saved({"model": {}, "cfg": Hostile()}), CHECKPOINT, "could run code"),
    "a list": (saved([1, 2]), CHECKPOINT, NO_CHECKPOINT),
    "a model alone": (saved({"model": {}}), CHECKPOINT, NO_CHECKPOINT),
    "weights that are none": (changed(model={"a": 1}), CHECKPOINT, NO_CHECKPOINT),
    "a language model": (changed(task___name="language_modeling"), CHECKPOINT, "--task language_modeling"),
    "unknown architecture": (changed(model___name="nothing"), CHECKPOINT, "--arch nothing, which is not loaded"),
    "weights that are not finite": (not_finite, CHECKPOINT, "its weights are not finite in encoder."),
    "no weights": (changed(model={}), CHECKPOINT, "cannot be built"),
    "bad option": (changed(model__norm="nonorm"), "--norm", "nonorm"),
    "moved data": (changed(task__data="gone/data"), CHECKPOINT, "gone/data, and there is no such folder"),
    "other languages": (settings(source="fr"), CHECKPOINT, "translates de to en, but data is of fr and en"),
    "other subwords": (settings(bpe="unigram"), PREPARATION, "settings.bpe cannot be 'unigram'"),
    "other form": (settings(unicode=3), PREPARATION, "settings.unicode cannot be 3"),
    "no settings": (write(PREPARATION, "{}"), PREPARATION, "no folder of examples.translation.prepare"),
    "damaged settings": (write(PREPARATION, "{"), PREPARATION, "not a JSON file"),
    "not prepared": (without(PREPARATION), PREPARATION, "cannot be read"),
    "no dictionary": (without(DICTIONARY), DICTIONARY, "cannot be read"),
    "damaged dictionary": (write(DICTIONARY, b"\xff\xfe 1\n"), DICTIONARY, "not a dictionary of fairseq"),
    "short dictionary": (write(DICTIONARY, "a 1\nb 1\n"), DICTIONARY, "it was trained on other data"),
    "damaged subwords": (write("data/sentencepiece.bpe.model", b"x"), "data", "its subword model cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_cannot_be_used_is_named_in_one_line(copied, monkeypatch, name):
    monkeypatch.chdir(copied)
    change(copied, task__data="data")
    damage, place, message = DAMAGES[name]
    damage(copied)
    with pytest.raises(InputError) as refusal:
        Translator.from_pretrained("model")
    text = str(refusal.value)
    assert place in text and message in text and "\n" not in text, text
    assert not (copied / "hostile").exists()


def test_checkpoints_that_do_not_belong_together(copied, trained):
    other = copied / "other"
    shutil.copytree(copied / "model", other)
    shutil.copytree(trained / "data", copied / "data2")
    change(copied, task__data=str(copied / "data2"))
    names = ["checkpoint_best.pt", "../other/checkpoint_best.pt"]
    with pytest.raises(OptionError, match="trained on different data"):
        Translator.from_pretrained(copied / "model", names)
    assert len(Translator.from_pretrained(copied / "model", names, data=copied / "data").models) == 2
    change(copied, task__source_lang="en", task__target_lang="de")
    with pytest.raises(OptionError, match="translates de to en, the first the other way"):
        Translator.from_pretrained(copied / "model", names, data=copied / "data")
    with pytest.raises(OptionError, match="is there twice"):
        Translator.from_pretrained(copied / "model", [names[0], names[0]])
    with pytest.raises(InputError, match="there is no file"):
        Translator.from_pretrained(copied / "model", "checkpoint7.pt")
    with pytest.raises(InputError, match="--data: there is no folder"):
        Translator.from_pretrained(copied / "model", data=copied / "nowhere")


def test_a_model_of_the_other_direction(copied):
    change(copied, task__source_lang="en", task__target_lang="de", task__data=str(copied / "data"))
    translator = Translator.from_pretrained(copied / "model")
    assert str(translator).startswith("en to de: ") and len(translator.translate(["good morning ."])) == 1

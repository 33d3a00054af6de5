"""Options of fairseq's commands that were broken, each given as a user gives it, on one tiny model."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq import utils
from fairseq.data import Dictionary
from fairseq.search import DiverseBeamSearch
from fairseq.tasks import FairseqTask

from fairseq_ext.compat.generation import source_positions
from fairseq_ext.training.errors import DataError
from tests.fairseq_commands import FairseqCommands, FairseqServer, Outcome
from tests.test_end_to_end import PAIRS, SCHEDULE, SPLITS, TINY, USER_DIR

SHORT = ("--max-len-b", "6")
UNKNOWN = ("--unkpen", "-100")  # the model says <unk> and nothing else
LONG = "der " * 1100


class Project(FairseqCommands):
    """Data in three formats, and a model that has learned nothing."""

    def __init__(self, folder: Path, server: FairseqServer):
        super().__init__(folder, server)
        pairs = [line.split("|") for line in PAIRS.splitlines()]
        for split, chosen in SPLITS.items():
            for side, language in enumerate(("de", "en")):
                (folder / f"{split}.{language}").write_text("".join(f"{pair[side]}\n" for pair in pairs[chosen]))
        for form in ("mmap", "cached", "raw"):
            prefixes = [word for split in SPLITS for word in (f"--{split}pref", split)]
            options = ["-s", "de", "-t", "en", *prefixes, "--destdir", form, "--dataset-impl", form]
            self.must("fairseq_cli.preprocess", *options)
        self.train("mmap", "--save-dir", "model")

    def train(self, data: str, *options: object) -> Outcome:
        plain = ["--user-dir", USER_DIR, "--arch", "transformer_ext", *TINY, *SCHEDULE, "--max-update", "1"]
        return self.must("fairseq_cli.train", data, *plain, "--no-epoch-checkpoints", *options)

    def generate(self, data: str, *options: object) -> dict[int, str]:
        path = self.folder / "model" / "checkpoint_last.pt"
        command = [data, "--user-dir", USER_DIR, "--path", path, "--cpu", *SHORT]
        return hypotheses(self.must("fairseq_cli.generate", *command, *options))

    def interactive(self, *options: object, stdin: str) -> Outcome:
        path = self.folder / "model" / "checkpoint_last.pt"
        command = ["mmap", "--user-dir", USER_DIR, "-s", "de", "-t", "en", "--path", path, "--cpu", *SHORT]
        return self.must("fairseq_cli.interactive", *command, *options, stdin=stdin)


def hypotheses(outcome: Outcome) -> dict[int, str]:
    hypotheses = re.findall(r"^H-(\d+)\t\S+\t(.*)$", outcome.stdout, re.MULTILINE)
    return {int(number): text for number, text in hypotheses}


def sources(outcome: Outcome) -> dict[int, str]:
    return {int(number): text for number, text in re.findall(r"^S-(\d+)\t(.*)$", outcome.stdout, re.MULTILINE)}


@pytest.fixture(scope="module")
def project(tmp_path_factory, fairseq_server):
    return Project(tmp_path_factory.mktemp("project"), fairseq_server)


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("mmap", ["--num-batch-buckets", "3", "--max-tokens", "100", "--batch-size", "4"]),
        ("cached", ["--dataset-impl", "cached"]),
        ("cached", ["--num-workers", "1"]),
        ("mmap", ["--task", "translation_from_pretrained_bart", "--langs", "de,en"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_training_with(project, tmp_path, data, options):
    project.train(data, "--save-dir", tmp_path, *options)
    assert (tmp_path / "checkpoint_last.pt").exists()


def test_every_format_gives_the_same_translations(project):
    expected = project.generate("mmap")
    assert len(expected) == 13
    assert project.generate("cached") == expected
    assert project.generate("raw", "--dataset-impl", "raw") == expected
    assert project.generate("mmap", "--num-batch-buckets", "2") == expected


@pytest.mark.parametrize(
    "options",
    [
        "--beam 4 --nbest 2 --print-alignment soft --no-repeat-ngram-size 2 --unkpen 2 --lenpen 0.5 --temperature 2",
        "--sampling --sampling-topk 3 --beam 2 --nbest 2 --retain-dropout --prefix-size 1 --scoring chrf",
        "--sampling --sampling-topp 0.8 --beam 1 --scoring sacrebleu --left-pad-source --max-tokens 64",
        "--diversity-rate 0.5 --beam 4 --unnormalized --min-len 3",
        "--match-source-len --max-len-a 1 --truncate-source --skip-invalid-size-inputs-valid-test",
        "--score-reference --print-alignment",
    ],
)
def test_generating_with(project, options):
    """What works in stock fairseq on this stack goes on working beside the repairs."""
    assert len(project.generate("mmap", *options.split())) == 13


def test_what_the_doctor_calls_broken_is(project):
    """The day this fails, the line can go."""
    path = project.folder / "model" / "checkpoint_last.pt"
    command = ["mmap", "--user-dir", USER_DIR, "-s", "de", "-t", "en", "--path", path, "--cpu", *SHORT]
    outcome = project.run("fairseq_cli.interactive", *command, "--print-alignment", "soft", stdin="der zug kommt\n")
    assert outcome.code == 1 and "too many values to unpack" in outcome.last_line
    outcome = project.run(
        "fairseq_cli.preprocess", "--dataset-impl", "huffman", "-s", "de", "-t", "en", "--destdir", "x"
    )
    assert outcome.code == 1 and "Huffman" in outcome.last_line
    outcome = project.run("fairseq_cli.score", "--sys", "test.en", "--ref", "test.en", "--sacrebleu")
    assert outcome.code == 1 and "TypeError" in outcome.last_line


def test_processes_share_a_set(project):
    """As the refusal of --num-shards says."""
    world = ("--distributed-world-size", "2", "--distributed-rank", "1")
    assert 0 < len(project.generate("mmap", "--batch-size", "2", *world)) < 13


@pytest.mark.parametrize("name", ["characters", "bytes"])
def test_plain_encoders(project, name):
    outcome = project.interactive("--bpe", name, stdin="der zug\n")
    assert sources(outcome)[0].split() == ["<unk>"] * len("der zug")


# --- diverse beams ----------------------------------------------------------------------------------------------------


def test_diverse_beams_do_not_depend_on_the_batch(project):
    options = ("--beam", "4", "--diverse-beam-groups", "2")
    alone = project.generate("mmap", *options, "--batch-size", "1")
    assert len(alone) == 13
    assert project.generate("mmap", *options, "--batch-size", "5") == alone


def test_the_penalty_follows_its_sentence_when_others_finish():
    """Sentences 40 and 41 share a batch; when 40 is done, 41 must keep its own overlap."""
    search = DiverseBeamSearch(Dictionary(), num_groups=2, diversity_strength=0.5)
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.rand(2, 4, 9, generator=generator).log() for _ in range(2))
    scores = torch.zeros(2, 4, 1)
    search.step(0, first, None, None, torch.tensor([40, 41]))
    together = search.step(1, second[1:], scores[1:], None, torch.tensor([41]))
    search.step(0, first[1:], None, None, torch.tensor([41]))
    alone = search.step(1, second[1:], scores[1:], None, torch.tensor([41]))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


# --- unknown words ----------------------------------------------------------------------------------------------------


def test_unknown_words_are_copied_from_the_source(project):
    raw = ("raw", "--dataset-impl", "raw", *UNKNOWN)
    assert all(set(text.split()) == {"<unk>"} for text in project.generate(*raw).values())
    texts = dict(enumerate((project.folder / "test.de").read_text().splitlines()))
    for shown in ([], ["--print-alignment"], ["--print-alignment", "soft"]):
        copied = project.generate(*raw, "--replace-unk", *shown)
        assert len(copied) == 13
        for number, text in copied.items():
            assert set(text.split()) - {"<unk>"} <= set(texts[number].split())
        assert any(set(text.split()) != {"<unk>"} for text in copied.values())


def test_unknown_words_are_translated_by_a_file(project):
    words = sorted(set((project.folder / "test.de").read_text().split()))
    (project.folder / "words.txt").write_text("".join(f"{word} X{number}\n" for number, word in enumerate(words)))
    copied = project.generate("raw", "--dataset-impl", "raw", *UNKNOWN, "--replace-unk")
    translated = project.generate("raw", "--dataset-impl", "raw", *UNKNOWN, "--replace-unk", "words.txt")
    names = {word: f"X{number}" for number, word in enumerate(words)}
    assert translated == {n: " ".join(names.get(word, word) for word in text.split()) for n, text in copied.items()}


@pytest.mark.parametrize(
    ("text", "words"), [(None, "absent.txt: cannot be read"), ("one\n", "bad.txt:1: --replace-unk"), ("ä", "bad.txt:1")]
)
def test_a_word_file_that_cannot_be_read_is_named(project, text, words):
    name = "absent.txt" if text is None else "bad.txt"
    if text is not None:
        (project.folder / name).write_bytes(text.encode("latin-1"))
    outcome = project.run(
        *("fairseq_cli.generate", "raw", "--dataset-impl", "raw", "--user-dir", USER_DIR, "--cpu"),
        *("--path", project.folder / "model" / "checkpoint_last.pt", "--replace-unk", name),
    )
    assert outcome.code == 2 and words in outcome.last_line and not outcome.traceback


def test_interactive_says_that_it_has_no_source_words_to_copy(project):
    outcome = project.interactive(*UNKNOWN, "--replace-unk", stdin="der xyz\n\nxyz\n")
    assert "fairseq-interactive keeps no source text" in outcome.stderr
    assert sorted(hypotheses(outcome)) == [0, 1, 2]


HARD = [(0, 0), (2, 1), (1, 2), (0, 3)]
SOFT = [["0.9", "0.1", "0"], ["0", "0", "1"], ["0.2", "0.8", "0"], ["1", "0", "0"], ["0", "0", "1"]]


@pytest.mark.parametrize("place", [0, 2], ids=["first", "within"])
@pytest.mark.parametrize("copies", [False, True], ids=["as it is", "replace-unk"])
@pytest.mark.parametrize("alignment", [HARD, SOFT], ids=["hard", "soft"])
def test_a_stripped_token_shifts_no_alignment(place, copies, alignment):
    """The language's token is in the hypothesis and its alignment, and not in the text."""
    words = Dictionary()
    language, good, day = map(words.add_symbol, ("__en__", "go@@", "od"))
    tokens = [good, day, words.unk()]
    tokens.insert(place, language)
    kept = [position for position in range(4) if position != place]
    aligned = {"tgt_dict": words, "remove_bpe": "@@ ", "extra_symbols_to_ignore": {words.eos(), language}}
    hypothesis = torch.tensor([*tokens, words.eos()])
    _, text, shown = utils.post_process_prediction(
        hypothesis, "eins zwei drei", alignment, {} if copies else None, **aligned
    )
    assert text == f"good {'eins' if copies else '<unk>'}"
    if alignment is HARD:
        assert shown == [(HARD[position][0], number) for number, position in enumerate(kept)]
    else:
        assert shown == [SOFT[position] for position in (*kept, 4)]


# --- long sentences ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [1, 3, 10])
def test_one_long_sentence_does_not_lose_the_others(project, buffer):
    text = f"der zug kommt .\n{LONG}\nwo ist die katze ?\n\nguten morgen .\n"
    options = ("--buffer-size", buffer, "--batch-size", min(buffer, 2))
    outcome = project.interactive(*options, stdin=text)
    assert sorted(hypotheses(outcome)) == [0, 2, 3, 4]
    warning = (
        "a sentence of 1101 tokens, the model reads at most 1024, is skipped (--truncate-source cuts it instead): der"
    )
    assert outcome.stderr.count(warning) == 1

    outcome = project.interactive(*options, "--truncate-source", stdin=text)
    assert sorted(hypotheses(outcome)) == [0, 1, 2, 3, 4]
    assert len(sources(outcome)[1].split()) == 1023
    assert "is cut (--truncate-source)" in outcome.stderr


def test_generate_names_the_ways_out(project):
    path = project.folder / "model" / "checkpoint_last.pt"
    command = ["fairseq_cli.generate", "mmap", "--user-dir", USER_DIR, "--path", path, "--cpu", *SHORT]
    outcome = project.run(*command, "--max-source-positions", "6")
    assert outcome.code == 2 and not outcome.traceback
    assert re.search(
        r"^\d+ of 13 sentences are longer than the model reads .*number \d+ has \[\d+, \d+\]", outcome.last_line
    )
    skipped = hypotheses(project.must(*command, "--max-source-positions", "6", "--skip-invalid-size-inputs-valid-test"))
    cut = hypotheses(project.must(*command, "--max-source-positions", "6", "--truncate-source"))
    assert 0 < len(skipped) < 13 == len(cut)


def test_the_models_say_how_much_of_a_source_is_read(project):
    """The commands' own --max-source-positions is 1024, whatever the model was trained with."""
    saved = torch.load(project.folder / "model" / "checkpoint_last.pt")
    for part in ("model", "task"):
        saved["cfg"][part]["max_source_positions"] = 6
    torch.save(saved, project.folder / "short.pt")
    command = ["mmap", "--user-dir", USER_DIR, "-s", "de", "-t", "en", "--path", "short.pt", "--cpu", *SHORT]
    generate, interactive = ["fairseq_cli.generate", *command], ["fairseq_cli.interactive", *command]
    more = ("--truncate-source",)
    refused, cut, asked = project.run_together(
        [generate, [*generate, *more], [*interactive, *more]], stdin="der zug kommt um acht uhr .\nguten morgen\n"
    )
    assert refused.code == 2 and "(6, 1024)" in refused.last_line and "--truncate-source" in refused.last_line
    assert len(hypotheses(cut)) == 13
    assert max(len(text.split()) for text in sources(cut).values()) == 5
    assert sources(asked) == {0: "der zug kommt um acht", 1: "guten morgen"} and sorted(hypotheses(asked)) == [0, 1]
    assert "a sentence of 8 tokens, the model reads at most 6, is cut (--truncate-source): der zug" in asked.stderr


def test_a_refusal_advises_no_option_that_was_given():
    task = FairseqTask(argparse.Namespace(truncate_source=True))
    dataset = SimpleNamespace(filter_indices_by_size=lambda indices, most: ([], indices), size=lambda index: 9)
    for given, advised in ((True, False), (False, True)):
        task.cfg.truncate_source = given
        with pytest.raises(DataError, match="--skip-invalid-size-inputs-valid-test") as refusal:
            task.filter_indices_by_size([0], dataset, 6)
        assert ("--truncate-source" in str(refusal.value)) == advised


@pytest.mark.parametrize(
    ("limits", "most"),
    [(None, None), (7, 7), ((6, 9), 6), ((None, 9), None), ({"de-en": (6, 9), "fr-en": (5, 9)}, 5), ({}, None)],
)
def test_source_positions(limits, most):
    assert source_positions(limits) == most

"""A language model in fairseq's programs: trained with adaptive layers, evaluated in blocks, sampled from."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_ext.models import TransformerLanguageModelExt
from tests.fairseq_commands import FairseqCommands, FairseqServer, Outcome
from tests.helpers import ROOT

WORDS = "a b c d e f g h i j".split()
USER_DIR = ROOT / "fairseq_ext"
ADAPTIVE = [
    *("--adaptive-input", "--adaptive-input-cutoff", "6,10", "--adaptive-softmax-cutoff", "6,10"),
    *(
        "--adaptive-input-factor",
        "2",
        "--adaptive-softmax-factor",
        "2",
        "--tie-adaptive-weights",
        "--tie-adaptive-proj",
    ),
]
TINY = [
    *("--decoder-embed-dim", "16", "--decoder-input-dim", "16", "--decoder-output-dim", "16", "--decoder-layers", "2"),
    *("--decoder-attention-heads", "2", "--decoder-ffn-embed-dim", "16", "--decoder-normalize-before"),
]
BLOCK = 12


class Workshop(FairseqCommands):
    """A text, and a model of it that has adaptive layers, top-k attention, AdaNorm and the blocks of MUSE."""

    def __init__(self, folder: Path, server: FairseqServer) -> None:
        super().__init__(folder, server)
        for split, length in (("train", 60), ("test", 11)):
            lines = [" ".join(WORDS[(i * i + j * j) % 10] for j in range(3 + i % 4)) for i in range(length)]
            (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
        self.data, self.model = folder / "data", folder / "model" / "checkpoint_last.pt"
        texts = [word for split in ("train", "test") for word in (f"--{split}pref", folder / f"{split}.txt")]
        prepared = self.run("fairseq_cli.preprocess", "--only-source", *texts, "--destdir", self.data, "--workers", "1")
        assert prepared.code == 0, prepared.stderr
        trained = self.run(
            "fairseq_cli.train",
            *(self.data, "--user-dir", USER_DIR, "--task", "language_modeling", "--arch", "transformer_lm_ext"),
            *("--attention-topk", "3", "--norm", "adanorm", "--block", "muse", "--muse-kernels", "3", *TINY, *ADAPTIVE),
            *("--criterion", "adaptive_loss", "--ddp-backend", "legacy_ddp", "--sample-break-mode", "none"),
            *("--tokens-per-sample", "16", "--batch-size", "8", "--optimizer", "adam", "--lr", "0.01", "--cpu"),
            *("--max-update", "8", "--disable-validation", "--save-dir", self.model.parent, "--num-workers", "0"),
        )
        assert trained.code == 0, trained.stderr[-3000:]

    def evaluate(self, *options: object, block: int = BLOCK) -> float:
        outcome = self.run(
            "fairseq_cli.eval_lm",
            *(self.data, "--user-dir", USER_DIR, "--path", self.model, "--gen-subset", "test", "--cpu"),
            *("--sample-break-mode", "none", "--tokens-per-sample", block, "--num-workers", "0", *options),
        )
        assert outcome.code == 0, outcome.stderr[-3000:]
        return float(re.search(r"Loss \(base 2\): ([\d.]+)", outcome.stderr)[1])

    def generate(self, *options: object) -> Outcome:
        outcome = self.run(
            "fairseq_cli.generate",
            *(self.data, "--user-dir", USER_DIR, "--path", self.model, "--task", "language_modeling", "--cpu"),
            *("--sample-break-mode", "eos", "--beam", "2", "--max-len-b", "12", "--num-workers", "0", *options),
        )
        assert outcome.code == 0, outcome.stderr[-3000:]
        return outcome


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, fairseq_server: FairseqServer) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"), fairseq_server)


@pytest.fixture(scope="module")
def loaded(workshop: Workshop) -> TransformerLanguageModelExt:
    hub = TransformerLanguageModelExt.from_pretrained(
        str(workshop.model.parent), workshop.model.name, str(workshop.data)
    )
    return hub.models[0]


def stream(workshop: Workshop) -> Tensor:
    words: Dictionary = Dictionary.load(str(workshop.data / "dict.txt"))
    text = (workshop.folder / "test.txt").read_text().splitlines()
    return torch.cat([words.encode_line(line, add_if_not_exist=False).long() for line in text])


@torch.no_grad()
def loss_in_blocks(model: TransformerLanguageModelExt, tokens: Tensor, block: int, context: int = 0) -> float:
    """In bits a token: ``block`` predictions at a time, each block with ``context`` tokens more before it."""
    inputs = torch.cat([torch.tensor([2]), tokens[:-1]])
    total = 0.0
    for start in range(0, len(tokens), block):
        first, end = max(0, start - context), start + block
        log_probs = model.get_normalized_probs(model(inputs[None, first:end]), log_probs=True)[0, start - first :]
        total -= log_probs.gather(-1, tokens[start:end, None]).sum().item()
    return total / len(tokens) / math.log(2)


def test_evaluation(workshop: Workshop, loaded: TransformerLanguageModelExt) -> None:
    tokens = stream(workshop)
    whole = workshop.evaluate()
    assert whole == pytest.approx(loss_in_blocks(loaded, tokens, BLOCK), abs=2e-3)
    assert workshop.evaluate("--softmax-batch", "5") == pytest.approx(whole, abs=2e-3)
    windowed = workshop.evaluate("--context-window", "7")
    assert windowed == pytest.approx(loss_in_blocks(loaded, tokens, BLOCK - 7, context=7), abs=2e-3)
    assert abs(windowed - whole) > 0.01, "the comparisons must tell the two apart"


def test_generation(workshop: Workshop, loaded: TransformerLanguageModelExt) -> None:
    """The best continuations that fairseq-generate prints have the probabilities that the model gives them."""
    words = Dictionary.load(str(workshop.data / "dict.txt"))
    outcome = workshop.generate("--gen-subset", "test", "--prefix-size", "2")
    hypotheses = re.findall(r"^H-\d+\t(\S+)\t(.*)$", outcome.stdout, re.MULTILINE)
    scores = re.findall(r"^P-\d+\t(.*)$", outcome.stdout, re.MULTILINE)
    assert len(hypotheses) == 11
    for (_, text), printed in zip(hypotheses, scores, strict=True):
        tokens = words.encode_line(text, add_if_not_exist=False).long()
        inputs = torch.cat([torch.tensor([2]), tokens[:-1]])
        with torch.no_grad():
            log_probs = loaded.get_normalized_probs(loaded(inputs[None]), log_probs=True)[0]
        bits = log_probs.gather(-1, tokens[:, None]).squeeze(-1) / math.log(2)
        torch.testing.assert_close(torch.tensor([*map(float, printed.split())]), bits, rtol=0, atol=2e-3)


SPANS = [
    *("--arch", "transformer_lm_ext", "--attention-span", "8", "--attention-span-ramp", "2", "--attention-topk", "3"),
    *("--attention-span-init", "0.5", "--attention-span-loss", "0.1", "--no-token-positional-embeddings", *TINY),
    *("--task", "language_modeling", "--sample-break-mode", "none", "--tokens-per-sample", "16", "--batch-size", "8"),
    *("--optimizer", "adagrad", "--lr", "0.6", "--cpu", "--num-workers", "0", "--disable-validation"),
    *("--log-format", "json", "--log-interval", "1"),
]


def train_spans(workshop: Workshop, folder: str, updates: int, *options: object) -> tuple[Outcome, dict[str, Tensor]]:
    outcome = workshop.run(
        "fairseq_cli.train",
        *(workshop.data, "--user-dir", USER_DIR, *SPANS, "--criterion", "cross_entropy_with_span"),
        *("--save-dir", workshop.folder / folder, "--max-update", updates, *options),
    )
    assert outcome.code == 0, outcome.stderr[-3000:]
    saved = torch.load(workshop.folder / folder / "checkpoint_last.pt", weights_only=False)
    return outcome, saved["model"]


def test_adaptive_spans(workshop: Workshop) -> None:
    """Trained by fairseq's trainer, they stay in range; logged; resumed to the bit; evaluated and sampled from."""
    outcome, whole = train_spans(workshop, "spans", 6, "--save-interval-updates", 2)
    spans = {name: value for name, value in whole.items() if name.endswith("current_val")}
    assert len(spans) == 2 and all(0 <= z <= 1 for value in spans.values() for z in value.flatten().tolist())
    logged = [float(value) for value in re.findall(r'"avg_span": "([\d.]+)"', outcome.output)]
    assert logged and all(2 <= value <= 8 for value in logged) and len(set(logged)) > 1
    assert re.search(r'"span_loss": "0\.\d+"', outcome.output)

    middle = workshop.folder / "spans" / "checkpoint_1_2.pt"
    _, resumed = train_spans(workshop, "resumed", 6, "--restore-file", middle)
    assert list(resumed) == list(whole) and all(torch.equal(resumed[name], whole[name]) for name in whole)

    path = workshop.folder / "spans" / "checkpoint_last.pt"
    tokens = stream(workshop)
    hub = TransformerLanguageModelExt.from_pretrained(str(path.parent), path.name, str(workshop.data))
    evaluated = workshop.evaluate("--path", path)
    assert evaluated == pytest.approx(loss_in_blocks(hub.models[0], tokens, BLOCK), abs=2e-3)
    assert workshop.generate("--path", path, "--gen-subset", "test", "--prefix-size", "2").stdout.count("H-") == 11


def test_a_loss_of_spans_that_nothing_adds_is_refused(workshop: Workshop) -> None:
    outcome = workshop.run(
        "fairseq_cli.train",
        *(workshop.data, "--user-dir", USER_DIR, *SPANS, "--criterion", "cross_entropy", "--max-update", "1"),
        *("--save-dir", workshop.folder / "refused"),
    )
    assert outcome.code == 2 and not outcome.traceback
    assert outcome.last_line == (
        "--attention-span-loss 0.1: --criterion cross_entropy does not add it, adaptive_loss_with_span, "
        "cross_entropy_with_span, label_smoothed_encouraging_loss do"
    )

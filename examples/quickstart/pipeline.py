"""The steps from text to BLEU. Each runs the commands that a user would type; a finished step is not run again."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fairseq_ext
from examples.quickstart.corpus import build_corpus
from examples.results.fairseq_log import log_records, parameters
from examples.translation.prepare import Options as PrepareOptions
from examples.translation.prepare import prepare
from examples.translation.score import sacrebleu_score
from fairseq_ext.text import PREPARATION
from fairseq_ext.training.files import read_json, write_json
from fairseq_ext.training.options import SPLITS, OptionSet, option, seed_option
from fairseq_ext.training.progress import progress, say

USER_DIR = str(Path(fairseq_ext.__file__).parent)

# Everything this package adds, switched on together; and fairseq's own Transformer and loss, for comparison.
SYSTEMS: dict[str, list[str]] = {
    "combined": (
        "--block muse --muse-kernels 3,15 --attention-topk 8 --norm adanorm --cross-view gca "
        "--criterion label_smoothed_encouraging_loss --log-end 0.75"
    ).split(),
    "plain": "--criterion label_smoothed_cross_entropy".split(),
}
ARCHITECTURE = (
    "--arch transformer_ext --encoder-layers 2 --decoder-layers 2 --encoder-embed-dim 128 --decoder-embed-dim 128 "
    "--encoder-ffn-embed-dim 512 --decoder-ffn-embed-dim 512 --encoder-attention-heads 4 --decoder-attention-heads 4 "
    "--share-all-embeddings --dropout 0.1"
).split()
OPTIMISATION = (
    "--label-smoothing 0.1 --optimizer adam --adam-betas (0.9,0.98) --clip-norm 1.0 --lr 3e-3 "
    "--lr-scheduler inverse_sqrt --warmup-updates 150 --max-tokens 2048"
).split()
BEAM, LENPEN = 5, 1.0
# A language without spaces has one word a line, and a small corpus characters that train lacks: neither is a mistake.
PREPARED: dict[str, Any] = {"joined_dictionary": True, "max_ratio": 1000.0, "allow_unknown": True}


class PipelineError(SystemExit):
    """A step failed: one line, and exit code 1."""


@dataclass(frozen=True, kw_only=True)
class Settings(OptionSet):
    """The corpus and the training. A step runs again when a setting that it depends on has changed."""

    source: str = option("en", "source language, a CLDR locale such as en or pt_BR")
    target: str = option("de", "target language, a CLDR locale")
    pairs: int = option(20_000, "sentence pairs, valid and test included")
    vocab_size: int = option(2000, "size of the sentencepiece model, of both languages", least=1, aliases=("vocab",))
    updates: int = option(700, "training updates", least=1)
    seed: int = seed_option(1, "seed of the corpus and of the training")


class Pipeline:
    """Runs the steps inside one output folder.

    Each step has a sub-folder, where it first writes its settings (`settings.json`) and last its outcome (`done.json`).
    With the same settings a finished step is skipped, and fairseq resumes a training that was killed from its last
    checkpoint. Any other step starts over in an empty folder.
    """

    def __init__(self, out: Path, settings: Settings) -> None:
        self.out, self.settings = out, settings
        self.corpus_dir, self.data_dir = out / "corpus", out / "data-bin"

    # -- steps ---------------------------------------------------------------------------------------------------

    def prepare(self) -> dict[str, Any]:
        """The corpus, in `corpus/`; in `data-bin/` what `examples.translation.prepare` makes of it."""
        s = self.settings
        if not (self.data_dir / PREPARATION).is_file():
            (self.corpus_dir / "done.json").unlink(missing_ok=True)
        depends = {key: getattr(s, key) for key in ("source", "target", "pairs", "vocab_size", "seed")}
        depends |= {"babel": version("babel"), "preparation": PREPARED}
        return self._step("corpus", self.corpus_dir, depends, self._prepare)

    def _prepare(self) -> dict[str, Any]:
        s = self.settings
        corpus = build_corpus(s.source, s.target, s.pairs, s.seed)
        corpus.write(self.corpus_dir, s.source, s.target)
        shutil.rmtree(self.data_dir, ignore_errors=True)
        prefixes = {split: str(self.corpus_dir / split) for split in SPLITS}
        languages = {"source": s.source, "target": s.target}
        out = str(self.data_dir)
        prepare(PrepareOptions(**prefixes, **languages, out=out, vocab_size=s.vocab_size, **PREPARED))
        return {split: len(getattr(corpus, split)) for split in SPLITS}

    def train(self, system: str) -> dict[str, Any]:
        """`fairseq-train`: a fixed number of updates, the best checkpoint chosen by validation likelihood."""
        s, folder = self.settings, self.out / system
        report = max(1, s.updates // 20)
        arguments = [str(self.data_dir), *_device(), "--user-dir", USER_DIR, "--seed", str(s.seed)]
        arguments += [*ARCHITECTURE, *SYSTEMS[system], *OPTIMISATION, "--max-update", str(s.updates)]
        validate = str(max(1, s.updates // 8))
        arguments += ["--validate-interval-updates", validate, "--save-interval-updates", validate]
        arguments += ["--keep-interval-updates", "1", "--no-epoch-checkpoints", "--save-dir", str(folder)]
        # The likelihood, not the training loss: it means the same for every criterion.
        arguments += ["--best-checkpoint-metric", "nll_loss", "--log-format", "json"]
        arguments += ["--log-interval", str(report), "--no-progress-bar"]

        def run() -> dict[str, Any]:
            bits: dict[str, str] = {}
            with progress(total=s.updates, desc=f"train {system}", unit=" updates") as bar:

                def show(line: str) -> None:
                    for record in log_records([line]):
                        if "num_updates" in record:
                            update = int(record["num_updates"])
                            if not bits:  # of a training that is resumed, where it began
                                bar.initial = bar.n = update - report
                            bits["train bits"] = record["nll_loss"]
                            bar.set_postfix(bits, refresh=False)
                            bar.update(update - bar.n)
                        elif "valid_nll_loss" in record:
                            bits["valid bits"] = record["valid_nll_loss"]

                self._fairseq("train", arguments, folder, show)
            return {"parameters": parameters(folder / "fairseq-train.log"), "command": ["fairseq-train", *arguments]}

        depends = {**self._settings_of(self.corpus_dir), "updates": s.updates, "arguments": arguments}
        return self._step(f"train {system}", folder, depends, run, resumable=True)

    def evaluate(self, system: str) -> dict[str, Any]:
        """`fairseq-generate` on the test set, then sacreBLEU against the untouched reference text."""
        s, folder = self.settings, self.out / system / "test"
        checkpoint = self.out / system / "checkpoint_best.pt"
        arguments = [str(self.data_dir), *_device(), "--user-dir", USER_DIR, "--gen-subset", "test"]
        arguments += ["--path", str(checkpoint), "--beam", str(BEAM), "--lenpen", str(LENPEN)]
        arguments += ["--remove-bpe", "sentencepiece", "--max-tokens", "8000", "--no-progress-bar"]

        def run() -> dict[str, Any]:
            hypotheses: dict[int, str] = {}
            total = read_json(self.corpus_dir / "done.json")["test"]
            with progress(total=total, desc=f"translate {system}", unit=" lines") as bar:

                def collect(line: str) -> None:
                    if line.startswith("H-"):
                        index, _, text = line.rstrip("\n").split("\t")
                        hypotheses[int(index[2:])] = text
                        bar.update()

                self._fairseq("generate", arguments, folder, collect)
            sources, references = (
                (self.corpus_dir / f"test.{language}").read_text(encoding="utf-8").splitlines()
                for language in (s.source, s.target)
            )
            if sorted(hypotheses) != list(range(len(references))):
                raise PipelineError(
                    f"fairseq-generate: {len(hypotheses)} of {len(references)} test sentences translated"
                )
            ordered = [hypotheses[i] for i in range(len(references))]
            (folder / f"hypotheses.{s.target}").write_text("".join(f"{h}\n" for h in ordered), encoding="utf-8")
            bleu, signature = sacrebleu_score(ordered, references, s.target)
            chosen = _samples(sources)
            return {
                "bleu": round(bleu.score, 2),
                "signature": signature,
                "exact_match_percent": round(100 * sum(map(str.__eq__, ordered, references)) / len(ordered), 1),
                "sentences": len(ordered),
                "samples": [
                    {"source": sources[i], "hypothesis": ordered[i], "reference": references[i]} for i in chosen
                ],
                "command": ["fairseq-generate", *arguments],
            }

        return self._step(f"translate {system}", folder, self._settings_of(self.out / system), run)

    def translate(self, system: str, line: str) -> str:
        """Translate one line of new text as `fairseq-ext translate` does."""
        translator = fairseq_ext.Translator.from_pretrained(self.out / system)
        return translator.translate([line], beam=BEAM, lenpen=LENPEN)[0]

    def summary(self, systems: list[str]) -> dict[str, Any]:
        """What `results.json` holds: the outcomes of all steps, the settings and the versions that made them."""
        names = ("ve-fairseq", "torch", "numpy", "babel", "sacrebleu", "sentencepiece")
        rows = {}
        for system in systems:
            training, test = (read_json(self.out / part / "done.json") for part in (system, f"{system}/test"))
            rows[system] = {
                **{key: test[key] for key in ("bleu", "signature", "exact_match_percent", "sentences")},
                "parameters": training["parameters"],
                "train_seconds": training["seconds"],
                "generate_seconds": test["seconds"],
                "samples": test["samples"],
                "commands": [training["command"], test["command"]],
            }
        return {
            "settings": self.settings.as_dict(),
            "corpus": read_json(self.corpus_dir / "done.json"),
            "systems": rows,
            "versions": {"python": sys.version.split()[0], **{name: version(name) for name in names}},
        }

    # -- machinery -----------------------------------------------------------------------------------------------

    def _step(
        self,
        title: str,
        folder: Path,
        settings: dict[str, Any],
        run: Callable[[], dict[str, Any]],
        resumable: bool = False,
    ) -> dict[str, Any]:
        done, wanted = folder / "done.json", folder / "settings.json"
        same = wanted.is_file() and read_json(wanted) == settings
        if same and done.is_file():
            say(f"{title}: already done")
            return read_json(done)
        resuming = resumable and same
        say(f"{title}: resuming" if resuming else title)
        if not resuming:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_json(wanted, settings)
        start = time.perf_counter()
        outcome = run()
        outcome["seconds"] = round(time.perf_counter() - start, 1)
        write_json(done, outcome)
        say(f"{title}: {outcome['seconds']} s")
        return outcome

    @staticmethod
    def _settings_of(folder: Path) -> dict[str, Any]:
        """The settings of an earlier step and when it ended: when it has run again, the later ones run again too."""
        return {**read_json(folder / "settings.json"), "after": (folder / "done.json").stat().st_mtime_ns}

    @staticmethod
    def _fairseq(tool: str, arguments: list[str], folder: Path, follow: Callable[[str], None] | None = None) -> None:
        """Run one of fairseq's commands; append all it prints to a log in `folder`, and hand each line to `follow`."""
        log = folder / f"fairseq-{tool}.log"
        command = [sys.executable, "-m", f"fairseq_cli.{tool}", *arguments]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        last = ""
        with (
            log.open("a", encoding="utf-8", buffering=1) as file,
            subprocess.Popen(
                command,
                env=environment,
                text=True,
                encoding="utf-8",
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,
            ) as process,
        ):
            for line in process.stdout or ():
                file.write(line)
                last = line.strip() or last
                if follow:
                    follow(line)
        if process.returncode:
            raise PipelineError(f"fairseq-{tool}: exit code {process.returncode}: {last} (all of it: {log})")


def _device() -> list[str]:
    import torch

    return [] if torch.cuda.is_available() else ["--cpu"]


def _samples(sources: list[str], count: int = 5) -> list[int]:
    """Indices of `count` test sentences from short to long, the same for every system."""
    by_length = sorted(range(len(sources)), key=lambda i: (len(sources[i]), i))
    return [by_length[(2 * j + 1) * len(by_length) // (2 * count)] for j in range(count)]


def _die_with_parent() -> None:
    """Ask Linux to end this command when the pipeline is killed, so that no stray training writes into the folder."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG

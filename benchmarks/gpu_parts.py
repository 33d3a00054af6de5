"""The parts of ``benchmarks.gpu``: the command of each, and what its files say at any time."""

from __future__ import annotations

import gzip
import importlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from benchmarks.__main__ import NAMES, conditions
from examples.results.planned import restore
from examples.results.report import slug, unique
from fairseq_ext.training.extras import missing_package
from fairseq_ext.training.files import output_folder, read_json, write_json

Content = dict[str, Any]
LIBRARY = ("fairseq_ext", "graph", "vision_language")


@dataclass
class Part:
    """What is measured, in a folder of its own.

    Each has ``name``, ``limit`` in seconds, the ``code`` that its figures depend on (files and folders), ``transient``
    files that another call has left, and

    - ``needs`` and ``extra``: modules that it imports once it runs, whose packages a machine with a GPU may lack, and
      the extra that brings these packages; ``nothing``: what is known of the part if they are lacking,

    - ``command()``: arguments of Python,
    - ``known()``: what the folder tells by now; ``failed`` lists what is wrong, ``missing`` what is still to come,
    - ``resume(content)``: puts what an earlier call knew into the folder.

    Args:
        work: the folder.
        dry_run: whether sizes are tiny, on the CPU.
        jobs: processes at a time.
        data: folder of the data sets.
    """

    work: Path
    dry_run: bool
    jobs: int
    data: Path

    code: ClassVar[tuple[str, ...]] = (*LIBRARY, "benchmarks")
    transient: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    nothing: ClassVar[Content] = {"rows": []}

    def lacks(self) -> str:
        """Which package is missing, and how to install it; empty where the part can run."""
        try:
            self._needed()
        except ModuleNotFoundError as error:
            if reason := missing_package(error, self.extra):
                return str(reason)
            raise
        return ""

    def _needed(self) -> list[ModuleType]:
        return [importlib.import_module(name) for name in self.needs]

    def resume(self, content: Content) -> None:
        """Put back what an earlier call knew; nothing, unless a part says otherwise."""


ONE_OF_EACH = (
    "test_blocks and float32 and (Norm or topk or loss) or test_graph or test_label_graph or test_iais"
    " or test_images and bf16 or generates and float32 or bf16 and trains or top2-layernorm-none"
)
"""A few GPU tests of every kind; a dry run runs only these."""


class GpuTests(Part):
    """``pytest -m gpu``."""

    name, limit, transient = "tests", 120.0, ("outcomes.jsonl",)
    code = (*LIBRARY, "benchmarks", "examples", "tests")

    def command(self) -> list[str]:
        # not all tests: those in other folders need packages that a machine with a GPU may lack
        chosen = ["tests/gpu", "tests/kernels", "-n", "8", "--dist", "worksteal"]
        if self.dry_run:
            chosen = ["tests/gpu", "--dry-run", "-k", ONE_OF_EACH]
        outcomes = ["-p", "benchmarks.outcomes", "--outcomes", str(self.work / "outcomes.jsonl")]
        return ["-m", "pytest", "-m", "gpu", "-q", *outcomes, *chosen]

    def known(self) -> Content:
        file = self.work / "outcomes.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        entries = [json.loads(line) for line in lines if line.endswith("}")]
        outcomes = {entry["test"]: entry for entry in entries if "test" in entry}
        counts = {word: sum(entry["outcome"] == word for entry in outcomes.values()) for word in ("passed", "skipped")}
        failed = {name: entry["why"] for name, entry in outcomes.items() if entry["outcome"] == "failed"}
        missing = [] if any("exit" in entry for entry in entries) else ["the tests after these"]
        if not self.dry_run:  # on a GPU there is nothing that a test may be skipped for
            skipped = [(name, entry) for name, entry in outcomes.items() if entry["outcome"] == "skipped"]
            missing += [f"{name} ({entry['why']})" for name, entry in skipped]
        return {**counts, "failed": failed, "missing": missing}

    @staticmethod
    def summary(content: Content) -> list[str]:
        counts = ", ".join(f"{content[word]} {word}" for word in ("passed", "skipped"))
        return [f"{counts}, {len(content['failed'])} failed", *content["failed"]]


KERNELS = "kernels"
"""Name of the claim that is left out where no kernel is used."""


class Ratios(Part):
    """``python -m benchmarks --device cuda``."""

    name, limit, transient = "benchmarks", 120.0, ("rows.json",)
    extra = "fairseq,graph,vl"

    @property
    def names(self) -> list[str]:
        return ["kernels", "norm"] if self.dry_run else list(NAMES)

    def command(self) -> list[str]:
        where = ["--quick"] if self.dry_run else ["--device", "cuda"]
        return ["-m", "benchmarks", *self.names, *where, "--resume", "--json", str(self.work / "rows.json")]

    def known(self) -> Content:
        file = self.work / "rows.json"
        content = read_json(file) if file.exists() else {"left_out": {}, "failed": {}, "rows": []}
        known = {row["claim"] for row in content["rows"]} | content["left_out"].keys()
        missing = [name for name in self.names if name not in known | content["failed"].keys()]
        if KERNELS in content["left_out"]:  # the kernels are made for a GPU: there it must not be left out
            missing.append(f"{KERNELS} ({content['left_out'][KERNELS]})")
        return {"part": "benchmarks", "busy": False, **content, "missing": missing}

    def _needed(self) -> list[ModuleType]:
        self._conditions()  # fails if a package is lacking, as it asks for their versions
        return super()._needed()

    def _conditions(self) -> dict[str, Any]:
        return conditions("cpu" if self.dry_run else "cuda", quick=self.dry_run)

    def resume(self, content: Content) -> None:
        # Rows of another card do not go on here.
        if content["rows"] and content["environment"] == self._conditions():
            write_json(
                self.work / "rows.json", {name: content[name] for name in ("environment", "left_out", "failed", "rows")}
            )

    @staticmethod
    def summary(content: Content) -> list[str]:
        targets = [row for row in content["rows"] if row["target"] is not None]
        missed = [f"{row['ratio']:.2f}x, target {row['target']:g}: {row['case']}" for row in targets if not row["met"]]
        failed = [f"{name}: {error}" for name, error in content["failed"].items()]
        met = f"{len(targets) - len(missed)} of {len(targets)} targets met"
        return [f"{len(content['rows'])} rows, {met}", *missed, *failed]


class Multi30k(Part):
    """The translation table to convergence: several trainings share the card."""

    name, limit = "multi30k", 540.0
    code = (
        *("fairseq_ext", "examples/results/translation", "examples/translation"),
        *("examples/results/fairseq_log.py", "examples/results/fairseq_programs.py"),
    )
    needs, extra = ("examples.results.translation.experiments",), "fairseq"
    nothing: ClassVar[Content] = {"part": "translation", "rows": []}

    @property
    def systems(self) -> list[str]:
        (experiments,) = self._needed()
        return list(experiments.SYSTEMS)

    @property
    def size(self) -> str:
        return "trial" if self.dry_run else "converged"

    @property
    def arms(self) -> tuple[list[str], list[int]]:
        """Systems, and seeds of each."""
        return (self.systems[:1], [1]) if self.dry_run else (self.systems, [1, 2, 3])

    def command(self) -> list[str]:
        data = self.data
        if self.dry_run:
            data = self.work / "data"
            write_corpus(output_folder(data / "multi30k_de_en"))
        systems, seeds = self.arms
        words = ["--size", self.size, "--systems", *systems, "--seeds", *map(str, seeds), "--jobs", str(self.jobs)]
        places = ["--data", str(data), "--out", str(self.work / "runs"), "--docs", str(self.work / "docs"), "--replace"]
        return ["-m", "examples.results", "translation", *words, *places]

    def known(self) -> Content:
        rows = [read_json(file) for file in sorted(self.work.glob("runs/*/*/result.json"))]
        (experiments,) = self._needed()
        rows = [row for row in rows if row["updates"] == experiments.SIZES[self.size].updates]  # of no other budget
        systems, seeds = self.arms
        finished = {(row["seed"], row["system"]) for row in rows}
        missing = [f"{name}, seed {seed}" for seed in seeds for name in systems if (seed, name) not in finished]
        content: Content = {"part": "translation", "size": self.size, "rows": rows, "failed": {}, "missing": missing}
        if not rows:
            return content
        stored = self.work / "docs" / "results" / f"multi30k_{self.size}.json"
        tests = {"bootstrap": read_json(stored)["bootstrap"]} if stored.exists() else {}
        return content | {"environments": unique(row["environment"] for row in rows), **tests}

    def resume(self, content: Content) -> None:
        restore(content["rows"], self.work / "runs")

    @staticmethod
    def summary(content: Content) -> list[str]:
        rows = [f"{row['sacrebleu']:6.2f} BLEU  {row['system']}, seed {row['seed']}" for row in content["rows"]]
        return [f"{len(rows)} trainings", *rows]


class Images(Part):
    """MNIST with the network of the encouraging loss's paper, in full."""

    name, limit = "images", 540.0
    code = ("fairseq_ext", "vision_language", "examples/results/image_classification")
    needs, extra = ("examples.results.image_classification", "vision_language.image_classification.synthetic"), "vl"
    nothing: ClassVar[Content] = {"part": "image_classification", "rows": [], "results": {}}

    @property
    def experiment(self) -> str:
        return "trial" if self.dry_run else "l_softmax"

    def command(self) -> list[str]:
        data = self.data
        if self.dry_run:
            data = self.work / "data"
            _, synthetic = self._needed()
            synthetic.synthesize(synthetic.SyntheticOptions(out=str(data / "images" / "mnist"), images=100))
        words = ["--experiments", self.experiment, "--seeds", "1"]
        places = ["--data", str(data), "--out", str(self.work / "runs"), "--docs", str(self.work / "docs"), "--replace"]
        return ["-m", "examples.results", "image_classification", *words, *places]

    def known(self) -> Content:
        results, _ = self._needed()
        contents = {name: read_json(self._results(name)) for name in self._rows if self._results(name).exists()}
        rows = [
            {"system": name, "runs": {seed: results.figures_of(run) for seed, run in content["runs"].items()}}
            for name, content in contents.items()
        ]
        known: Content = {"part": "image_classification", "experiment": self.experiment, "rows": rows, "failed": {}}
        runs = [run for content in contents.values() for run in content["runs"].values()]
        known |= {"environments": unique(run["environment"] for run in runs)} if runs else {}
        return known | {"results": contents, "missing": [name for name in self._rows if name not in contents]}

    def resume(self, content: Content) -> None:
        for name, results in content["results"].items():
            write_json(output_folder(self._results(name).parent) / "results.json", results)

    @property
    def _rows(self) -> list[str]:
        return list(self._needed()[0].EXPERIMENTS[self.experiment].rows)

    def _results(self, name: str) -> Path:
        folder = self._needed()[0].EXPERIMENTS[self.experiment].trainings
        return self.work / "runs" / "image_classification" / folder / slug(name) / "results.json"

    @staticmethod
    def summary(content: Content) -> list[str]:
        rows = [(row["system"], run) for row in content["rows"] for run in row["runs"].values()]
        return [f"{len(rows)} trainings", *(f"{100 * run['test_accuracy']:6.2f} %  {name}" for name, run in rows)]


PARTS = (GpuTests, Ratios, Multi30k, Images)


def write_corpus(folder: Path) -> None:
    """Made-up sentences in place of Multi30k, in its files."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 4))) for _ in range(40)]
    for split, size in (("train", 200), ("val", 10), ("test_2016_flickr", 10)):
        lines = [" ".join(draw.choices(words, k=draw.randint(3, 9))) + "\n" for _ in range(size)]
        for language in ("de", "en"):
            (folder / f"{split}.{language}.gz").write_bytes(gzip.compress("".join(lines).encode(), mtime=0))

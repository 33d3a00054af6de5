"""What each row of the results really runs, and that no row is taken for another one's."""

from __future__ import annotations

import argparse
import gzip
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from examples.results import __main__ as command
from examples.results import (
    graph_classification,
    graph_log_end,
    iais,
    iais_data,
    label_graph,
    muka,
    muka_merging,
    muka_teachers,
    renode,
    renode_large,
    renode_recipes,
    report,
)
from examples.results.claims import claims_of
from fairseq_ext.modules.visual import box_geometry
from fairseq_ext.training.errors import DataError, OptionError
from fairseq_ext.training.files import write_json
from fairseq_ext.training.flags import Runs
from graph.renode.options import LargeRuns
from vision_language.iais.data import Image, RegionData, read_splits

ENVIRONMENT = {"processor": "P", "cores": 2, "threads": 1, "python": "3", "torch": "2"}


def defaults(part: str, **changes: Any) -> argparse.Namespace:
    _, own = command._parsers()
    return argparse.Namespace(**{**vars(own[part].parse_args([])), **changes})


# --- stored measurements ---------------------------------------------------------------------------------------------


def other(action: argparse.Action) -> Any:
    """A value that an option takes, and that is not its default."""
    value = action.default
    if isinstance(value, list):
        return value[:1] if len(value) > 1 else [*value, value[0] + 1]
    if action.choices:
        return next(choice for choice in action.choices if choice != value)
    return ["gcn"] if value is None and action.nargs == "+" else (value or 0) + 1


def refuse_other(part: str, options: argparse.Namespace, form: argparse.ArgumentParser) -> None:
    command._refuse_other(part, options, form, command._digests(part, options))


EVERY_OPTION = [
    (name, action.dest)
    for name, form in command._parsers()[1].items()
    for action in form._actions
    if action.dest not in (*command.PLACES, report.part(name).SELECTS, "help")
]


@pytest.mark.parametrize(("part", "option"), EVERY_OPTION)
def test_stored_measurements_are_replaced_only_when_told(part: str, option: str, tmp_path) -> None:
    form = command._parsers()[1][part]
    options = defaults(part, docs=tmp_path)
    (tmp_path / "results").mkdir()
    for name in report.part(part).reads(options):
        write_json(tmp_path / "results" / f"{name}.json", {"part": part, "command": part})
    refuse_other(part, options, form)
    (action,) = (action for action in form._actions if action.dest == option)
    changed = argparse.Namespace(**{**vars(options), option: other(action)})
    if report.part(part).reads(changed).keys() == report.part(part).reads(options).keys():
        with pytest.raises(OptionError, match=rf"measured with --{option.replace('_', '-')} .* give --replace"):
            refuse_other(part, changed, form)
    changed.replace = True
    refuse_other(part, changed, form)


EVERY_COUNT_AND_LIST = [
    (name, action.option_strings[0], action.nargs)
    for name, form in command._parsers()[1].items()
    for action in form._actions
    if action.nargs == "+" or action.type is int
]


@pytest.mark.parametrize(("part", "option", "nargs"), EVERY_COUNT_AND_LIST)
def test_no_count_is_zero_and_nothing_is_measured_twice(part: str, option: str, nargs: str | None, tmp_path) -> None:
    """Each before anything is measured or written."""
    (action,) = (action for action in command._parsers()[1][part]._actions if option in action.option_strings)
    first = next(iter(action.choices or action.default or ["gcn"])) if nargs else "0"
    words, message = ([first, first], f"{option} has {first} twice") if nargs else (["0"], f"{option} must be at least")
    with pytest.raises(OptionError, match=re.escape(message)):
        command.main([part, option, *map(str, words), "--docs", str(tmp_path / "docs"), "--out", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


def test_the_stored_command_is_what_to_type(monkeypatch, tmp_path):
    module = SimpleNamespace(
        SELECTS="", reads=lambda options: {"iais_x": []}, measure=lambda options: iter([{"name": "iais_x"}])
    )
    real = command.part
    monkeypatch.setattr(command, "part", lambda name: real(name) if name != "iais" else _with(real(name), module))
    monkeypatch.setattr(command, "write_report", lambda docs: None)
    places = ["--docs", str(tmp_path / "docs"), "--out", str(tmp_path / "out")]
    command.main(["iais", "--arms", "none", "singular", "--seeds", "5", *places])
    stored = json.loads((tmp_path / "docs" / "results" / "iais_x.json").read_text())
    assert stored["command"] == "iais --arms none singular --seeds 5"
    with pytest.raises(OptionError, match="measured with --arms none singular, now none"):
        command.main(["iais", "--arms", "none", "--seeds", "5", *places])


def _with(module: Any, changes: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(module), **vars(changes)})


def test_a_copy_of_other_data_is_refused(tmp_path):
    source, target = tmp_path / "data" / "Cora", tmp_path / "out" / "Cora"
    with pytest.raises(DataError, match="is not a folder with the raw files of Cora"):
        report.copied(source, target)
    (source / "raw").mkdir(parents=True)
    (source / "raw" / "x").write_text("1")
    target.parent.mkdir()
    report.copied(source, target)
    report.copied(source, target)
    (source / "raw" / "x").write_text("2")
    with pytest.raises(DataError, match=r"copied from other data .*raw/x.*delete it"):
        report.copied(source, target)


# --- the arms --------------------------------------------------------------------------------------------------------


class Trainer:
    """Takes the place of a trainer: remembers its options, and returns figures that tell which call they are from."""

    def __init__(self, metrics: tuple[str, ...], extra: tuple[str, ...] = ("seed9",)) -> None:
        self.metrics, self.extra, self.calls = metrics, extra, []

    def __call__(self, options: Any, out: Any, *, seed: int = 1, runs: int = 1) -> SimpleNamespace:
        self.calls.append(options)
        names = (
            list(out.seeds) if isinstance(out, (Runs, LargeRuns)) else [f"seed{n}" for n in range(seed, seed + runs)]
        )
        recorded = {**ENVIRONMENT, "call": len(self.calls)}
        history = [{"epoch": 1, "f1": 0.5}]
        figures = {"history": history, **dict.fromkeys(self.metrics, float(len(self.calls))), "environment": recorded}
        return SimpleNamespace(runs={name: figures for name in (*names, *self.extra)})


@pytest.mark.parametrize("labels", [["dog"], None])
def test_iais_rows(monkeypatch, tmp_path, labels):
    trainer, folders = Trainer((*iais.METRICS, "seconds_per_step", "best_step", "history")), []
    monkeypatch.setattr(
        iais, "run", lambda options, out: (folders.append(Path(out.out).name), trainer(options, out))[1]
    )
    test = SimpleNamespace(images=[1], captions=["a"], labels=labels)
    monkeypatch.setattr(iais, "read_data", lambda options: {"train": "the training split", "test": test})
    for name, other in (("class_names", 0), ("pooled_vectors", 1)):
        plain = {"ir_r1": 1.0 + other}
        monkeypatch.setattr(iais, name, lambda train, _, plain=plain: plain if train == "the training split" else {})
    (tmp_path / "coco_val2017_regions").mkdir()
    chosen = {"datasets": ["coco_val2017_regions"], "seeds": 2, "num_steps": 70}
    (content,) = iais.measure(defaults("iais", data=tmp_path, out=tmp_path, **chosen))
    baseline, *rows = content["rows"]
    plain = (iais.CLASS_NAMES, 1.0) if labels else (iais.VECTORS, 2.0)
    assert baseline == {"system": plain[0], "runs": {"": {"ir_r1": plain[1]}}}
    shown = {"none": "ranking loss alone", "singular": "+ IAIS, singular", "distributed": "+ IAIS, distributed"}
    assert [row["system"] for row in rows] == [shown[options.iais] for options in trainer.calls]
    assert [Path(folder).name for folder in folders] == [options.iais for options in trainer.calls]
    assert {options.num_steps for options in trainer.calls} == {70}
    assert [row["runs"]["seed2"]["ir_r1"] for row in rows] == [1.0, 2.0, 3.0]
    assert all(list(row["runs"]) == ["seed1", "seed2"] for row in rows), "runs of a longer command"
    assert [each["call"] for each in content["environments"]] == [1, 2, 3]


@pytest.fixture
def stamps(tmp_path):
    """Grids whose vectors tell what an image shows: 4 things, one of them in each image, named in two languages."""
    things = [
        ("a red cat", "eine Katze"),
        ("the moon", "der Mond"),
        ("green grass", "das Gras"),
        ("a fox", "ein Fuchs"),
    ]
    source, rows = tmp_path / "data" / "captioning" / "tuxpaint_stamps", {}
    source.mkdir(parents=True)
    for split, size in (("train", 12), ("valid", 4), ("test", 4)):
        lines = []
        for number in range(size):
            name = f"{split}{number}.jpg"
            rows[name] = np.eye(4, dtype=np.float16)[[number % 4] * 49]
            english, german = things[number % 4]
            captions = {"en": english, "de": german}
            lines.append({"image": f"images/{name}", "width": 70, "height": 140, "captions": captions})
        with gzip.open(source / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in lines)
    np.savez(source / "grid_features.npz", names=np.array(list(rows)), features=np.stack(list(rows.values())))
    return tmp_path


def test_stamps_become_regions(stamps):
    folder = iais_data.region_folder("tuxpaint_stamps_de", stamps / "data", stamps / "out")
    splits = read_splits(folder, max_regions=49)
    assert [len(splits[split].images) for split in ("train", "valid", "test")] == [12, 4, 4]
    image = splits["test"].images[2]
    assert image.captions == ("das Gras",) and image.features()[:, 2].eq(1).all()
    assert image.boxes[[0, 1, 7, 48]].tolist() == [[0, 0, 10, 20], [10, 0, 20, 20], [0, 20, 10, 40], [60, 120, 70, 140]]
    assert iais_data.region_folder("tuxpaint_stamps_de", stamps / "data", stamps / "out") == folder, "written once"
    assert iais_data.region_folder("tuxpaint_stamps_en", stamps / "data", stamps / "out") != folder
    recalls = iais_data.pooled_vectors(splits["train"], splits["test"])
    assert recalls["ir_r1"] == recalls["tr_r1"] == 1.0
    shuffled = RegionData(splits["test"].images[::-1], None, 4)
    assert iais_data.pooled_vectors(splits["train"], shuffled)["rsum"] == recalls["rsum"]
    with pytest.raises(DataError, match="coco_val2017_regions is not a folder"):
        iais_data.region_folder("coco_val2017_regions", stamps / "data", stamps / "out")


@pytest.fixture
def labelled(monkeypatch, tmp_path):
    """Measures label graphs with a trainer that only remembers."""
    trainer = Trainer((*label_graph.METRICS, "valid_micro_f1", "best_epoch"))
    monkeypatch.setattr(label_graph, "run", trainer)
    svm = {"test": 0.5, "valid": 0.25}
    monkeypatch.setattr(
        label_graph, "linear_svm", lambda data, scored="test": dict.fromkeys(label_graph.METRICS, svm[scored])
    )
    (tmp_path / "multilabel" / "mams_acsa").mkdir(parents=True)

    def measured(name: str, **chosen: object) -> tuple[dict, Trainer]:
        options = defaults("label_graph", data=tmp_path, out=tmp_path, datasets=[name], seeds=2, **chosen)
        *earlier, content = label_graph.measure(options)
        systems = options.systems if name in label_graph.DATASETS else [""]
        assert [each["missing"] for each in earlier] == [systems[number:] for number in range(1, len(systems))]
        assert [content["name"]] == [*label_graph.reads(options)] and not content.get("missing")
        for each in earlier:
            text = label_graph.section([{**each, "command": "c"}])
            assert text.rstrip().endswith(f"Not measured yet: {'; '.join(each['missing'])}.")
        return content, trainer

    return measured


def test_label_graph_rows(labelled):
    content, trainer = labelled("mams_acsa")
    network = {"han": "attention network", "graph": "+ label graph", "soft": "+ soft training"}
    encoder = {"han": "MiniLM", "graph": "MiniLM + label graph", "soft": "MiniLM + soft training"}
    svm, *rows = content["rows"]
    assert svm["system"] == label_graph.SVM and svm["runs"] == {"": dict.fromkeys(label_graph.METRICS, 0.5)}
    shown = [(encoder if options.encoder else network)[options.arm] for options in trainer.calls]
    assert [row["system"] for row in rows] == shown == [*network.values(), *encoder.values()]
    assert len({repr(options.as_dict() | {"arm": ""}) for options in trainer.calls}) == 2, "the arms differ by it alone"
    assert [row["runs"]["seed1"]["micro_f1"] for row in rows] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert all(list(row["runs"]) == ["seed1", "seed2"] for row in rows)


def test_label_graph_rows_can_be_chosen(labelled):
    content, trainer = labelled("mams_acsa", systems=["MiniLM"])
    assert [row["system"] for row in content["rows"]] == [label_graph.SVM, "MiniLM"] and len(trainer.calls) == 1
    assert content["settings"].startswith("states: ") and "words: " not in content["settings"]
    with pytest.raises(OptionError, match=r"^--systems: has no effect on mams_acsa_ablation"):
        labelled("mams_acsa_ablation", systems=["MiniLM"])


def test_label_graph_ablation_rows(labelled):
    content, trainer = labelled("mams_acsa_ablation")
    assert content["svm"] == 0.25 and len(content["rows"]) == len(trainer.calls)
    as_it_is = {"3 reviews of a sample", "random vectors, trained"}
    assert [row["change"] for row in content["rows"]] == [name for name in label_graph.CHANGES if name not in as_it_is]
    first, *others = (options.as_dict() for options in trainer.calls)
    for row, options in zip(content["rows"][1:], others, strict=True):
        reader, values = label_graph.CHANGES[row["change"]]
        differing = {name for name, value in options.items() if value != first[name]}
        assert differing and options["arm"] == "han", "a change that is none"
        assert reader == "states" or differing == {name for name in values if values[name] != first[name]}
        assert bool(options["encoder"]) == (reader == "states")
    text = label_graph.section([{**content, "command": "c"}])
    assert "| attention network | 1.000 ± 0.000 |  | 1.0, 1.0 |" in text and "| 2.000 ± 0.000 | +1.000 |" in text
    assert "| linear SVM, TF-IDF | 0.250 | | |" in text
    words = [row for row in content["rows"] if row["reader"] == "words"]
    best = (
        f"The best that reads words ({words[-1]['change']}) has {len(words):.3f}, not below the linear SVM with 0.250"
    )
    assert best in text and f"the best on the encoder ({row['change']}) has {len(content['rows']):.3f}, above" in text


def test_renode_rows(monkeypatch, tmp_path):
    trainer = Trainer(("weighted_f1", "macro_f1", "totoro", "valid_f1"), extra=("split9-init9",))
    monkeypatch.setattr(renode, "run", trainer)
    monkeypatch.setattr(renode_recipes, "run", trainer)
    monkeypatch.setattr(renode, "copied", lambda source, target: None)
    options = defaults("renode", data=tmp_path, out=tmp_path, datasets=["Cora"], models=["gcn", "sage"], splits=2)
    (content,) = renode.measure(argparse.Namespace(**{**vars(options), "losses": ["ce", "focal"], "inits": 1}))
    assert content["name"] == "renode_Cora" and len(content["rows"]) == 2 * 2 * 3
    calls = iter(enumerate(trainer.calls, 1))
    for row in content["rows"]:
        for side in ("off", "on"):
            number, chosen = next(calls)
            assert (chosen.renode, chosen.backbone, chosen.loss) == (side, row["model"], row["loss"])
            ratio = {"balanced": None, "step 5": 5.0, "step 10": 10.0}[row["split"]]
            assert (chosen.imbalance == "step") == (ratio is not None) and ratio in (None, chosen.imbalance_ratio)
            assert list(row[side]) == ["split0-init0", "split1-init0"]
            assert row[side]["split1-init0"]["weighted_f1"] == number
    assert not content["choices"]
    ce = {"recipe": "constant", "losses": ["ce"], "models": ["gcn", "appnp"]}
    (content,) = renode.measure(argparse.Namespace(**{**vars(options), **ce}))
    assert content["name"] == "renode_Cora_constant" and len(content["choices"]) == len(renode_recipes.CHOICES)
    assert [row["model"] for row in content["rows"]] == ["gcn"] * 3 + ["appnp"] * 3
    numbers = [int(choice["valid_f1"][0]) for choice in content["choices"]]
    assert numbers == [*range(numbers[0], len(trainer.calls) + 1)], "the last ones"
    tried, trained = trainer.calls[numbers[0] - 1 :], trainer.calls[numbers[0] - 2]
    assert all(choice.renode == "off" and choice.imbalance == "none" for choice in tried), "of the baseline"
    assert trained.normalize_features and (trained.lr, trained.lr_decay) == (0.1, 1.0)
    assert content["rows"][0]["off"]["split0-init0"]["curve"] == [[1, 0.5]]
    with pytest.raises(OptionError, match="--models: the table of Cora has gcn"):
        list(renode.measure(argparse.Namespace(**{**vars(options), "models": ["no"]})))


def test_renode_large_rows(monkeypatch, tmp_path):
    trainer = Trainer(renode_large.METRICS)
    monkeypatch.setattr(renode_large, "run", trainer)
    options = defaults("renode_large", data=tmp_path, out=tmp_path, datasets=["wordnet"], splits=3)
    (content,) = renode_large.measure(options)
    assert [row["system"] for row in content["rows"]] == list(renode_large.ARMS)
    weighting = [(call.renode, call.totoro, call.w_min, call.w_max) for call in trainer.calls]
    exact = ("on", "exact", 0.75, 1.25)
    assert weighting == [("off", *exact[1:]), exact, ("on", "exact", 0.5, 1.5), ("on", "push-softmax", 0.75, 1.25)]
    assert {call.train_each for call in trainer.calls} == {16} and "--train-each 16" in content["options"]
    assert list(content["rows"][0]["runs"]) == [f"split{split}-init0" for split in range(3)]
    text = renode_large.section([{**content, "command": "renode_large"}])
    assert "| wordnet | off | 100.0 ± 0.0 | | | | 100.0 ± 0.0 | |" in text
    assert "| wordnet | exact | 200.0 ± 0.0 | +100.00 [+100.00, +100.00] | < 0.001 | 3/3 | 200.0 ± 0.0 | +100" in text


def test_graph_classification_rows(monkeypatch, tmp_path):
    calls = []

    def train(arguments: list[str]) -> None:
        options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
        calls.append(options)
        names = [*(f"repeat0-fold{fold}" for fold in range(3)), "repeat1-fold0"]  # one repeat more than is asked for
        score = {"cross-entropy": 0.5, "encouraging": 0.75}[options["--loss"]]
        Path(options["--out"]).mkdir(parents=True)
        run = {"test_accuracy": score, "environment": ENVIRONMENT}
        write_json(Path(options["--out"], "results.json"), {"runs": dict.fromkeys(names, run)})

    monkeypatch.setattr(graph_classification, "train", train)
    monkeypatch.setattr(graph_classification, "copied", lambda source, target: None)
    options = defaults("graph_classification", data=tmp_path, out=tmp_path, datasets=["NCI1"], folds=3, repeats=1)
    (content,) = graph_classification.measure(options)
    assert {call["--loss"] for call in calls} == {"cross-entropy", "encouraging"}
    assert {(call["--folds"], call["--repeats"], call["--epochs"]) for call in calls} == {("3", "1", "1000")}
    assert content["runs_of"].keys() == {"cross-entropy", "encouraging"}
    assert all(
        list(runs) == ["repeat0-fold0", "repeat0-fold1", "repeat0-fold2"] for runs in content["runs_of"].values()
    )
    text = graph_classification.section([{**content, "command": "c"}])
    assert "| 50.00 | 75.00 | +25.00 [+25.00, +25.00] | < 0.001 | 3 / 0 / 0 |" in text


def test_graph_log_end_rows(monkeypatch, tmp_path):
    """The new arms are trained, and stand beside the stored runs of the table on the same folds."""
    calls, folds = [], [f"repeat0-fold{fold}" for fold in range(4)]

    def runs(*scores: float) -> dict[str, dict]:
        return {
            name: {"test_accuracy": score, "environment": ENVIRONMENT}
            for name, score in zip(folds, scores, strict=False)
        }

    def train(arguments: list[str]) -> None:
        options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
        calls.append(options)
        Path(options["--out"]).mkdir(parents=True)
        write_json(Path(options["--out"], "results.json"), {"runs": runs(0.5, 0.5, 0.47, 0.0)})

    monkeypatch.setattr(graph_log_end, "train", train)
    monkeypatch.setattr(graph_log_end, "copied", lambda source, target: None)
    options = defaults("graph_log_end", data=tmp_path, out=tmp_path, docs=tmp_path, datasets=["NCI1"], folds=3)
    options.log_ends = ["1"]
    (tmp_path / "results").mkdir()
    stored = {"encouraging": runs(0.6, 0.6), "cross-entropy": runs(0.4, 0.5, 0.5, 0.9)}
    write_json(tmp_path / "results" / "graph_classification_NCI1.json", {"runs_of": stored})
    with pytest.raises(DataError, match="has no repeat0-fold2; first: python -m"):
        list(graph_log_end.measure(options))
    assert not calls
    stored["encouraging"] = runs(0.6, 0.6, 0.7, 0.0)
    write_json(tmp_path / "results" / "graph_classification_NCI1.json", {"runs_of": stored})
    (content,) = graph_log_end.measure(options)
    assert [(call["--log-end"], call["--folds"]) for call in calls] == [("1", "3")]
    assert {arm: list(own) for arm, own in content["runs_of"].items()} == dict.fromkeys(
        ("cross-entropy", "0.5", "1"), folds[:3]
    )
    content["command"] = "c"
    text = graph_log_end.section([content])
    # differences of 10, 0 and -3 points; of three folds one tests and one trains, so their variance counts 4/3 times
    assert "| NCI1 | 1 | 49.00 | +2.33 [-31.49, +36.15] | 0.795 | 1 / 1 / 1 | -0.15 |" in text
    (claim,) = claims_of("graph_log_end", [content])
    assert claim.published == 0.66 and claim.paired.mean == pytest.approx(43 / 3)
    graph_log_end.draw([content], tmp_path)
    assert (tmp_path / "graph_log_end.png").stat().st_size > 1000


MUKA_ROWS = {
    "vanilla KD": ("vkd", None, None),
    "UHC": ("uhc", None, None),
    "DFA": ("dfa", None, None),
    "CFL": ("cfl", None, None),
    "MUKA, hard": ("muka-hard", False, False),
    "MUKA, soft": ("muka-soft", False, False),
    "MUKA, soft, without dropout passes": ("muka-soft", False, True),
    "MUKI, hard": ("muka-hard", True, False),
    "MUKI, soft": ("muka-soft", True, False),
    "supervised": ("supervised", None, None),
}  # method, weights by the margin, no dropout passes


@pytest.mark.parametrize("most", [None, 9])
def test_muka_rows(monkeypatch, tmp_path, most):
    teachers, students = [], []

    def amalgamate(options: Any, out: Path) -> SimpleNamespace:
        students.append(options)
        run = {"test_accuracy": len(students), "environment": ENVIRONMENT, "steps": 7, "converged": None}
        return SimpleNamespace(runs={f"seed{options.seed}": run})

    monkeypatch.setattr(muka, "amalgamate", amalgamate)
    monkeypatch.setattr(muka_teachers, "train_teacher", lambda options, out: teachers.append((options, out)))
    monkeypatch.setattr(muka_teachers, "read_texts", lambda source, split: split)
    monkeypatch.setattr(muka_teachers, "Texts", SimpleNamespace(joined=lambda texts: texts))
    monkeypatch.setattr(muka, "make_accelerator", lambda precision: None)
    monkeypatch.setattr(muka, "TeacherCache", lambda *arguments: None)
    diagnosed = []

    def diagnose_teachers(options: Any, test: list[str], store: None, split: str) -> dict[str, Any]:
        diagnosed.append((options.seed, options.passes, options.supervised, test, split))
        return {"teachers": options.teachers}

    monkeypatch.setattr(muka, "diagnose_teachers", diagnose_teachers)
    merged = []
    monkeypatch.setattr(
        muka, "evaluate_classifiers", lambda *arguments: merged.append(arguments[:2]) or {"accuracy": 0.5}
    )
    (tmp_path / "text_cls" / "stackoverflow20").mkdir(parents=True)
    options = defaults("muka", data=tmp_path, out=tmp_path, settings=["heterogeneous"], seeds=1, passes=5)
    options.until_converged = most
    (content,) = muka.measure(options)
    seed_folder = tmp_path / "muka" / "heterogeneous" / "seed1"
    supervised = (seed_folder / "converged" if most else seed_folder) / "supervised"
    assert diagnosed == [(1, 5, str(supervised), ["test"], "test")]
    assert [(options.num_layers, options.part) for options, _ in teachers] == [(6, "1/2"), (3, "2/2")]
    assert {options.epochs for options, _ in teachers} == {3}
    assert content["name"] == "muka_heterogeneous" + "_converged" * bool(most)
    folders = [folder for _, folder in teachers]
    ensemble, *rows = content["rows"]
    assert ensemble == {"system": muka.ENSEMBLE, "runs": {"seed1": 0.5}} and merged == [(tuple(folders), ["test"])]
    assert {row["system"] for row in rows} == set(MUKA_ROWS)
    for number, (row, student) in enumerate(zip(rows, students, strict=True), 1):
        method, margin, no_mc = MUKA_ROWS[row["system"]]
        assert row["runs"] == {"seed1": number} and student.method == method
        assert (row["steps"], row["converged"]) == ({"seed1": 7}, {"seed1": None})
        assert (student.epochs, student.until_converged) == (most or 3, bool(most))
        assert margin in (None, student.margin) and no_mc in (None, student.no_mc)
        assert bool(student.cache) == (method != "supervised")
        assert list(student.teachers) == ([] if method == "supervised" else folders)
        assert method[:4] != "muka" or no_mc or student.passes == 5
    assert content["diagnostics"] == [{"teachers": tuple(folders)}]
    options.seeds, options.arms = 2, ["vanilla KD"]
    list(muka.measure(options))
    assert diagnosed[1:] == [(seed, 5, "", ["test"], "test") for seed in (1, 2)]


def test_merging_rows(monkeypatch, tmp_path):
    """Every rule merges the teachers of its setting and seed; those of unequal depth have no row."""
    calls = []

    def merged(teachers: Any, base: str = "", scale: float | None = None) -> Any:
        calls.append((teachers, bool(base), scale))
        return len(calls)

    def taught(name: str, seed: int, options: Any) -> Any:
        return (), (f"{name}-{seed}",), "test"

    def accuracy(folders: Any, test: Any, accelerator: Any, length: int) -> Any:
        return {"accuracy": 0.25 if isinstance(folders, tuple) else (tmp_path / folders[0].name).stat().st_size / 100}

    monkeypatch.setattr(muka_merging, "taught", taught)
    monkeypatch.setattr(muka_merging, "load_classifiers", lambda folders: folders)
    monkeypatch.setattr(muka_merging, "merged_classifier", merged)
    monkeypatch.setattr(muka_merging, "save_classifier", lambda n, folder: (tmp_path / folder.name).write_text("x" * n))
    monkeypatch.setattr(muka_merging, "make_accelerator", lambda precision: None)
    monkeypatch.setattr(muka_merging, "evaluate_classifiers", accuracy)
    options = defaults("muka_merging", data=tmp_path, out=tmp_path, seeds=2)
    assert set(options.settings) == {*muka.SETTINGS} - {"heterogeneous"}
    options.settings = ["google_snippets"]
    (content,) = muka_merging.measure(options)
    (row,) = content["rows"]
    assert row["setting"] == "google_snippets"
    assert row["runs"]["average"] == {"seed1": 0.01, "seed2": 0.04} and row["runs"][muka.ENSEMBLE]["seed2"] == 0.25
    rules = [(False, None), (True, 0.4), (True, 1.0)]
    assert calls == [((f"google_snippets-{seed}",), *rule) for seed in (1, 2) for rule in rules]
    text = muka_merging.section([{**content, "command": "muka_merging"}])
    assert "| google_snippets, 2 teachers of 4 classes | 25.0 ± 0.0 | 2.5 ± 1.5 (-22.5 [-41.6, -3.4]) |" in text


# --- baselines without a network -------------------------------------------------------------------------------------


@pytest.fixture
def fitted(monkeypatch):
    """The texts that TF-IDF was fitted on."""
    texts: list[str] = []
    original = TfidfVectorizer.fit_transform

    def fit_transform(self, documents, *rest):
        texts.extend(documents)
        return original(self, texts, *rest)

    monkeypatch.setattr(TfidfVectorizer, "fit_transform", fit_transform)
    monkeypatch.setattr(TfidfVectorizer, "fit", lambda self, documents: fit_transform(self, documents) is None or self)
    return texts


def test_the_svm_learns_from_the_training_texts_and_tunes_on_the_validation_texts(fitted, monkeypatch, tmp_path):
    lines = {"train": ["a\tred", "b\tgreen", "a|b\tred green"], "valid": ["a\tred", "a\tred"], "test": ["b\tgreen"]}
    for split, content in lines.items():
        (tmp_path / f"{split}.tsv").write_text("".join(f"{line}\n" for line in content))
    tuned = []
    monkeypatch.setattr(label_graph, "tune_threshold", lambda scores, gold: tuned.append(gold.tolist()) or 0.25)
    monkeypatch.setattr(label_graph, "multilabel_metrics", lambda scores, gold, cut: {"gold": gold.tolist(), "at": cut})
    assert label_graph.linear_svm(tmp_path) == {"gold": [[0, 1]], "at": 0.25}
    assert tuned == [[[1, 0], [1, 0]]] and fitted == ["red", "green", "red green"]


def test_class_names_know_the_training_classes_only(fitted, monkeypatch):
    def data(*images: str) -> RegionData:
        names = ["dog", "zebra"]
        corners = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        return RegionData(
            [
                Image(number, 1, 1, (f"a {name}",), corners, box_geometry(corners, 1, 1),
                      torch.tensor([names.index(name)]), f"image:{number}", torch.arange(1).numpy())
                for number, name in enumerate(images)
            ],
            labels=names,
        )  # fmt: skip

    matrices = []
    monkeypatch.setattr(iais_data, "recall_at_k", lambda scores, truth: matrices.append(scores) or {})
    iais_data.class_names(data("dog"), data("zebra", "dog"))
    (scores,) = matrices
    assert fitted == ["dog"] and (scores[0] == 0).all() and scores[1, 1] > 0.5 and scores[1, 0] == 0

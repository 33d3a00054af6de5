"""Every option of every command: a case in which it changes the outcome, and those in which it is refused as idle.

An option without a row fails.
"""

from __future__ import annotations

import functools
import json
import re
from typing import NamedTuple, get_type_hints

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_geometric.datasets
from torch_geometric.data import Data

from fairseq_ext.training.errors import InputError
from graph.renode import plot, train
from graph.renode.__main__ import main
from graph.renode.large_graph import LargeGraph
from graph.renode.model import MODELS, PACKAGE, build_model, options_of
from tests.graph.renode.large_graphs import write_npz
from tests.helpers import ROOT


class Row(NamedTuple):
    """Beside ``given``, ``option`` changes the outcome; each of ``idle`` is refused, by the name of the option."""

    option: str
    given: str = ""
    idle: tuple[str, ...] = ()


GRAPH = {
    "dataset": Row("--dataset other.pt"),
    "root": Row("--root elsewhere", "--dataset ClassWithRoot", ("--root elsewhere", "--dataset KarateClub --root x")),
    "to-undirected": Row("--to-undirected", idle=("--dataset graph.npz --to-undirected",)),
}
STEP = "--train-each 20 --imbalance step --labeling-ratio 0.3 --head-classes 0"
LABELS = {
    "split-kind": Row("--split-kind public", "--train-each 20"),
    "train-each": Row("--train-each 5", idle=("--split-kind public --train-each 5", f"{STEP} --train-each 5")),
    "imbalance": Row(STEP, idle=("--split-kind public --train-each 20 --imbalance step",)),
    "labeling-ratio": Row("--labeling-ratio 0.2", STEP, ("--labeling-ratio 0.3",)),
    "imbalance-ratio": Row("--imbalance-ratio 2", STEP, ("--imbalance-ratio 2",)),
    "head-classes": Row("--head-classes 1", STEP, ("--head-classes 1", f"{STEP} --imbalance-ratio 1 --head-classes 1")),
}
WEIGHTS = {
    "w-min": Row("--w-min 0.1"),
    "w-max": Row("--w-max 1.8"),
    "alpha": Row("--alpha 0.4"),
    "ties": Row("--ties average", idle=("--w-min 1 --w-max 1 --ties average",)),
    "tol": Row("--tol 0.5"),
    "max-iter": Row("--max-iter 1"),  # which does not converge
}
LOSS = {
    "loss": Row("--loss focal"),
    "gamma": Row("--gamma 3", "--loss focal", ("--gamma 3", "--loss cb-softmax --gamma 3")),
    "log-end": Row("--log-end 0.2", "--loss encouraging", ("--log-end 0.2", "--loss focal --log-end 0.2")),
}
OFF = "--renode off"
PUBLIC = "--split-kind public --train-each 20 --valid-each 30"
SCHEDULE = "--epochs 40 --lr 0.2 --lr-decay-epoch 2"
SCORE = GRAPH | LABELS | WEIGHTS | {
    "split-seed": Row("--split-seed 1", idle=("--split-kind public --train-each 20 --split-seed 1",)),
    "out": Row("--out elsewhere"),
}  # fmt: skip
TRAIN = GRAPH | LABELS | WEIGHTS | LOSS | {
    **{
        name: row._replace(idle=(*row.idle, f"{OFF} {row.option}"))
        for name, row in WEIGHTS.items()
    },
    "split-kind": Row(PUBLIC),
    "alpha": Row("--alpha 0.4", f"{OFF} --backbone appnp", (f"{OFF} --alpha 0.4", f"{OFF} --backbone sgc --alpha 0.4")),
    "beta": Row("--beta 0.1", f"{STEP} --loss cb-softmax", ("--beta 0.1", "--loss cb-softmax --beta 0.1",
        f"{PUBLIC} --loss cb-softmax --beta 0.1")),
    "valid-each": Row("--valid-each 5", idle=("--split-kind public --train-each 20 --valid-each 5",)),
    "normalize-features": Row("--normalize-features"),
    "backbone": Row("--backbone sage"),
    "num-layers": Row("--num-layers 3"),
    "hidden-size": Row("--hidden-size 5", idle=("--backbone sgc --hidden-size 5", "--num-layers 1 --hidden-size 5",
        "--backbone torch_geometric.nn.models.GIN --num-layers 1 --hidden-size 5")),
    "dropout": Row("--dropout 0.2", idle=("--backbone sgc --dropout 0.2", "--num-layers 1 --dropout 0.2",
        "--backbone torch_geometric.nn.models.GIN --num-layers 1 --dropout 0.2")),
    "hops": Row("--hops 3", "--backbone appnp", ("--hops 3", "--backbone ppnp --hops 3")),
    "topk": Row("--topk 2", "--backbone ppnp", ("--topk 2", "--backbone appnp --topk 2")),
    "renode": Row(OFF),
    "lr": Row("--lr 0.1"),
    "lr-decay": Row("--lr-decay 0.5", "--lr-decay-epoch 2", ("--lr-decay 0.5",)),
    "lr-decay-epoch": Row("--lr-decay-epoch 2", idle=("--lr-decay-epoch 12", f"{SCHEDULE} --lr-decay 1")),
    "min-lr": Row("--min-lr 1e-3", "--epochs 40 --lr 0.002 --lr-decay-epoch 2 --lr-decay 0.1",
        ("--min-lr 1e-6", f"{SCHEDULE} --min-lr 1e-6")),
    "weight-decay": Row("--weight-decay 1"),
    "epochs": Row("--epochs 3"),
    "least-epochs": Row("--least-epochs 2", "--epochs 60 --patience 1",
        ("--least-epochs 2", "--epochs 90 --patience 50 --least-epochs 2")),
    "patience": Row("--patience 2", "--epochs 40 --least-epochs 0", ("--patience 2", "--epochs 30 --patience 40")),
    "splits": Row("--splits 2", idle=(f"{PUBLIC} --splits 2",)),
    "inits": Row("--inits 2"),
    "device": Row("--device cuda:99"),  # which is not there
    "out": Row("--out elsewhere"),
}  # fmt: skip
NPZ = "--dataset graph.npz"
OWN = "--split-kind public --train-each 50"
LARGE = GRAPH | LOSS | {
    "to-undirected": Row("--to-undirected", idle=(f"{NPZ} --to-undirected",)),
    "features": Row("--features x.npy", NPZ, ("--features x.npy",)),
    "beta": Row("--beta 0.1", "--label-sampling qinl --loss cb-softmax",
        ("--beta 0.1", "--label-sampling qinl --beta 0.1", "--loss cb-softmax --beta 0.1")),
    "split-kind": Row(f"{OWN} --epochs 5", idle=("--label-sampling qinl --split-kind random",)),
    "label-sampling": Row("--label-sampling qinl", idle=(f"{OWN} --label-sampling qinl",)),
    "train-each": Row("--train-each 5", idle=(f"{OWN} --train-each 6",)),
    "alpha": Row("--alpha 0.4"),
    "eps": Row("--eps 0.1"),
    "topk": Row("--topk 2"),
    "normalization": Row("--normalization row"),
    "renode": Row(OFF),
    "totoro": Row("--totoro push-softmax",
        idle=(f"{OFF} --totoro push-softmax", "--w-min 1 --w-max 1 --totoro push-softmax")),
    "w-min": Row("--w-min 0.1", idle=(f"{OFF} --w-min 0.1",)),
    "w-max": Row("--w-max 1.8", idle=(f"{OFF} --w-max 1.8",)),
    "ties": Row("--ties average", "--train-each 8", (f"{OFF} --ties average", "--w-min 1 --w-max 1 --ties average")),
    "num-layers": Row("--num-layers 3"),
    "hidden-size": Row("--hidden-size 5", idle=("--num-layers 1 --hidden-size 5",)),
    "dropout": Row("--dropout 0.4", "--num-layers 1"),
    "reduction": Row("--reduction mean"),
    "lr": Row("--lr 0.1"),
    "weight-decay": Row("--weight-decay 1"),
    "batch-size": Row("--batch-size 7"),
    "epochs": Row("--epochs 2"),
    "patience": Row("--patience 0"),
    "validate-every": Row("--validate-every 5", "--epochs 8 --lr 0.5"),
    "inference-steps": Row("--inference-steps 0"),
    "splits": Row("--splits 2"),
    "inits": Row("--inits 2"),
    "out": Row("--out elsewhere-too"),
    "device": Row("--device cuda:99"),  # which is not there
}  # fmt: skip
COMMANDS = {
    "train": TRAIN,
    "score": SCORE,
    "plot": SCORE | {"layout-nodes": Row("--layout-nodes 12")},
    "train-large": LARGE,
}
BASE = {
    "train": "--dataset graph.pt --split-kind compat --train-each 4 --valid-each 3 --epochs 6 --splits 1 --inits 1",
    "score": "--dataset graph.pt --split-kind compat --train-each 4",
    "plot": "--dataset graph.pt --split-kind compat --train-each 4",
    "train-large": "--dataset graph.pt --split-kind compat --train-each 6 --epochs 4 --patience 4",
}
CASES = [(command, name) for command, rows in COMMANDS.items() for name in rows]


def a_graph(seed=0):
    """Directed, with public masks of as many nodes of each class, and an island of one class, whose nodes tie."""
    torch.manual_seed(seed)
    y = torch.arange(70) % 3
    y[60:] = 0
    same = torch.rand(70, 70) < torch.where(y[:, None] == y, 0.08, 0.03)
    same[:60, 60:] = same[60:, :60] = False
    data = Data(x=2 * F.one_hot(y, 3) + torch.rand(70, 3) * 3, edge_index=same.nonzero().T, y=y)
    place = torch.arange(70)
    data.train_mask, data.val_mask, data.test_mask = place < 12, (place > 11) & (place < 30), place > 29
    return data


class ClassWithRoot:
    roots: list = []  # noqa: RUF012

    def __init__(self, root):
        self.roots.append(root)

    def __getitem__(self, index):
        return a_graph(seed=len(self.roots[-1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("options"), a_graph()
    torch.save(data, folder / "graph.pt")
    torch.save(a_graph(seed=1), folder / "other.pt")
    write_npz(LargeGraph.from_data(data), folder / "graph.npz")
    np.save(folder / "x.npy", np.random.default_rng(0).random((70, 4), np.float32))
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch_geometric.datasets, "ClassWithRoot", ClassWithRoot, raising=False)


OUTCOMES: dict[tuple[str, str], object] = {}


def outcome(command: str, given: str, tmp_path, monkeypatch) -> object:
    """What a command writes, beside times; for ``train`` the logits, too, or else what it is refused for."""
    if (command, given) not in OUTCOMES:
        with monkeypatch.context() as patch:
            OUTCOMES[command, given] = _outcome(command, given, tmp_path / f"out{len(OUTCOMES)}", patch)
    return OUTCOMES[command, given]


def _outcome(command: str, given: str, out, patch) -> object:
    logits = []

    def fit(model, data, *arguments):
        record = train_fit(model, data, *arguments)
        logits.append(train.predict(model, data).tolist())
        return record

    train_fit = train.fit
    patch.setattr(train, "fit", fit)
    if "--layout-nodes" not in given:  # the layout takes long, and all figures are of the same scores
        patch.setattr(plot, "FIGURES", {"rank_to_weight.png": plot.plot_weights})
    try:
        main([command, *BASE[command].split(), "--out", str(out), *given.split()])
    except InputError as error:
        return str(error)
    files = {file: contents(file) for file in sorted(out.rglob("*")) if file.is_file() and file.suffix in KEPT}
    return {str(file.relative_to(out)): content for file, content in files.items()} | {"logits": logits}


KEPT = (".json", ".pt", ".tsv", ".npz", ".png")
TIMES = ("seconds_per_epoch", "environment")


def contents(file):
    if file.name == "results.json":
        runs = json.loads(file.read_text())["runs"]
        return {name: {key: run[key] for key in run if key not in TIMES} for name, run in runs.items()}
    return file.read_bytes()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_row(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    flags = set(re.findall(r"^  --([a-z-]+)", capsys.readouterr().out, re.M))
    assert flags - {"config", "quiet"} == COMMANDS[command].keys()


@pytest.mark.parametrize(("command", "name"), CASES)
def test_every_option_acts(command, name, tmp_path, monkeypatch):
    row = COMMANDS[command][name]
    assert f"--{name}" in row.option
    without = outcome(command, row.given, tmp_path, monkeypatch)
    changed = outcome(command, f"{row.given} {row.option}", tmp_path, monkeypatch)
    assert not isinstance(without, str), without
    assert changed != without
    assert not isinstance(changed, str) or name in ("device", "max-iter"), changed


IDLE = [(command, name, given) for command, rows in COMMANDS.items() for name in rows for given in rows[name].idle]


@pytest.mark.parametrize(("command", "name", "given"), IDLE)
def test_idle_options_are_refused(command, name, given, tmp_path):
    if command == "train" and "--split-kind public" in given and name != "valid-each":
        given = f"--valid-each 30 {given}"
    with pytest.raises(InputError, match=f"^--{name}\\b.*(has no effect|public split)|split 1 is not there") as error:
        main([command, *BASE[command].split(), "--out", str(tmp_path / "out"), *given.split()])
    assert "\n" not in str(error.value) and error.value.code
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def shown_commands():
    for name in ("docs/howto/graph.md", "graph/renode/README.md"):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if match := re.search(r"(?:^|\s)-m graph\.renode (\w[^#`]*)", line):
                yield match[1].strip()


@pytest.mark.parametrize("command", [command for command in shown_commands() if "..." not in command])
def test_no_command_of_the_documentation_has_idle_options(command):
    arguments = main.parser().parse_args(command.split())
    kinds = [kind for name, kind in get_type_hints(arguments.function).items() if name != "return"]
    assert [kind.of(arguments) for kind in kinds]


def test_earlier_names_of_options_are_taken(tmp_path):
    few = "train-large --dataset graph.pt --split-kind compat --train-each 6 --epochs 2 --patience 2".split()
    few += ["--out", str(tmp_path / "out")]
    earlier = {
        "hidden_size": "hidden",
        "num_layers": "layers",
        "validate_every": "interval",
        "inference_steps": "steps",
        "label_sampling": "imbalance",
    }
    now = "--hidden-size 5 --num-layers 3 --validate-every 2 --inference-steps 1 --label-sampling qinl".split()
    before = "--hidden 5 --layers 3 --interval 2 --steps 1 --imbalance qinl".split()
    file = tmp_path / "out" / "results.json"
    main([*few, *now])
    content = json.loads(file.read_text())
    main([*few, *before])
    assert json.loads(file.read_text()) == content and list(content["runs"]) == ["split0-init0"]
    # Settings of then belong to the same runs, and can be fed back.
    content["settings"] = {earlier.get(name, name): value for name, value in content["settings"].items()}
    assert content["settings"]["hidden"] == 5 and "hidden_size" not in content["settings"]
    file.write_text(json.dumps(content))
    main([*few, *now])
    main(["train-large", "--config", str(file), "--out", str(tmp_path / "out")])
    assert json.loads(file.read_text()) == content


@functools.cache
def logits_of(name, **options):
    """After two steps with the same random numbers."""
    torch.manual_seed(0)
    data = a_graph()
    model = build_model(name, 3, 3, **options)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(data.x, data.edge_index), data.y).backward()
        optimizer.step()
    return model.eval()(data.x, data.edge_index).detach()


DOTTED = [PACKAGE + name for name in ("GCN", "GraphSAGE", "GIN", "GAT", "EdgeCNN", "PMLP")]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", [*MODELS, *DOTTED])
def test_options_of_a_model_are_those_that_change_it(name, layers):
    """Among them PPNP's alpha."""
    if name.endswith("PMLP") and layers == 1:
        pytest.skip("has two layers or more")
    changes = {"num_layers": layers + 1, "hidden_channels": 16, "dropout": 0.1, "alpha": 0.5, "hops": 3, "topk": 2}
    base = {"num_layers": layers, "hidden_channels": 8, "dropout": 0.6}
    before = logits_of(name, **base)
    live = {key for key, value in changes.items() if not torch.equal(logits_of(name, **base | {key: value}), before)}
    assert live == options_of(name, layers)

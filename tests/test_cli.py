"""The ``fairseq-ext`` command: its subcommands, and one clear line for each kind of bad input."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib.util
import os
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch

from fairseq_ext import checkpoint_averaging, cli
from fairseq_ext.captions import __main__ as captions
from fairseq_ext.compat.model_options import OF_TRAINING
from fairseq_ext.recipes import RECIPES
from fairseq_ext.recipes.commands import GIVEN, adapted, commands, sources
from tests.helpers import ROOT


def checkpoint(seed: int, architecture: str = "transformer_ext", width: int = 4) -> dict:
    """What fairseq writes, in small: tied embeddings, a half precision tensor, a counter, an optimizer, an average."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(7, width, generator=generator)
    model = OrderedDict(
        {
            "encoder.embed_tokens.weight": embedding,
            "decoder.output_projection.weight": embedding,
            "encoder.norm.weight": torch.randn(width, generator=generator).half(),
            "encoder.updates": torch.tensor(seed),
        }
    )
    ema = {name: (value + 1 if value.is_floating_point() else value) for name, value in model.items()}
    return {
        "args": None,
        "cfg": {"_name": None, "model": {"_name": architecture, "dropout": 0.1}, "task": {"_name": "translation"}},
        "model": model,
        "optimizer_history": [{"num_updates": seed}],
        "last_optimizer_state": {"exp_avg": torch.ones(1000)},
        "extra_state": {"epoch": seed, "ema": ema, "train_iterator": {"epoch": seed}},
    }


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run a command inside a save directory with epochs 1 to 4 and two updates; returns (exit code, stdout, stderr)."""
    for seed in range(1, 5):
        torch.save(checkpoint(seed), tmp_path / f"checkpoint{seed}.pt")
    torch.save(checkpoint(5), tmp_path / "checkpoint_1_100.pt")
    torch.save(checkpoint(6), tmp_path / "checkpoint_2_90.pt")
    torch.save(checkpoint(7), tmp_path / "checkpoint_best.pt")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.main(arguments)
        except SystemExit as error:  # argparse
            code = error.code
        return code, *capsys.readouterr()

    return call


def with_options(state: dict, **options) -> dict:
    state["cfg"]["model"] |= options
    return state


def mean(*seeds: int, name: str = "encoder.embed_tokens.weight") -> torch.Tensor:
    values = [checkpoint(seed)["model"][name] for seed in seeds]
    return (torch.stack([value.double() for value in values]).sum(0) / len(seeds)).to(values[0].dtype)


# --- average ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "seeds"),
    [
        (["--inputs", "checkpoint1.pt", "checkpoint3.pt"], [1, 3]),
        (["--inputs", "checkpoint_best.pt"], [7]),
        (["--inputs", ".", "--last", "2"], [4, 3]),
        (["--inputs", ".", "--last", "2", "--by", "epoch", "--upper", "3"], [3, 2]),
        (["--inputs", ".", "--last", "2", "--by", "update"], [5, 6]),
        (["--inputs", ".", "--last", "1", "--by", "update", "--upper", "99"], [6]),
    ],
)
def test_average_is_the_mean(run, options, seeds):
    code, out, _ = run("average", *options, "--output", "average.pt")
    assert (code, out) == (0, "")
    state = torch.load("average.pt", weights_only=True)
    for name, value in state["model"].items():
        if value.is_floating_point():
            assert value.dtype == checkpoint(1)["model"][name].dtype
            torch.testing.assert_close(value, mean(*seeds, name=name), rtol=0, atol=0)
    assert state["model"]["encoder.updates"] == seeds[0]
    assert list(state["model"]) == list(checkpoint(1)["model"])
    assert state["cfg"] == checkpoint(1)["cfg"]
    assert not [name for name in os.listdir() if name.endswith(".tmp")]


def test_average_keeps_ties_and_drops_what_does_not_belong(run):
    run("average", "--inputs", ".", "--last", "3", "--output", "average.pt")
    state = torch.load("average.pt", weights_only=True)
    embedding, projection = (
        state["model"][n] for n in ("encoder.embed_tokens.weight", "decoder.output_projection.weight")
    )
    assert embedding.data_ptr() == projection.data_ptr()
    assert "last_optimizer_state" not in state
    start = {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True}
    assert state["extra_state"] == {"train_iterator": start}


def test_sums_run_in_float64():
    """In float32 the small weights vanish beside the large one, and 1e8 + 1 - 1e8 is 0."""
    states = [checkpoint(1) for _ in range(3)]
    for state, value in zip(states, (1e8, 1.0, -1e8), strict=True):
        state["model"] = {"w": torch.full((2,), value)}
    paths = {f"{i}.pt": state for i, state in enumerate(states)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_averaging, "load_checkpoint", lambda path: copy.deepcopy(paths[path]))
        averaged = checkpoint_averaging.average_checkpoints(list(paths))
    torch.testing.assert_close(averaged["model"]["w"], torch.full((2,), 1 / 3))


def test_parts_of_one_storage_are_no_ties(monkeypatch):
    """Neither other places of it nor another reading of the same place."""
    whole = torch.arange(8.0).view(2, 2, 2)
    model = {"first": whole[0], "second": whole[1], "turned": whole[0].T, "again": whole[0]}
    monkeypatch.setattr(checkpoint_averaging, "load_checkpoint", lambda path: {**checkpoint(1), "model": model})
    averaged = checkpoint_averaging.average_checkpoints(["1.pt", "2.pt"])["model"]
    for name, value in model.items():
        assert torch.equal(averaged[name], value), name
    assert averaged["again"] is averaged["first"]


def test_ema_is_extracted_and_averaged(run):
    assert run("average", "--inputs", "checkpoint2.pt", "--ema", "--output", "ema.pt")[0] == 0
    weight = torch.load("ema.pt", weights_only=True)["model"]["encoder.embed_tokens.weight"]
    torch.testing.assert_close(
        weight, checkpoint(2)["extra_state"]["ema"]["encoder.embed_tokens.weight"], rtol=0, atol=0
    )
    assert run("average", "--inputs", ".", "--last", "2", "--ema", "--output", "ema.pt")[0] == 0
    weight = torch.load("ema.pt", weights_only=True)["model"]["encoder.embed_tokens.weight"]
    torch.testing.assert_close(weight, mean(3, 4) + 1)


def test_ema_prefers_its_float32_copy(run):
    state = checkpoint(1)
    state["extra_state"]["ema_fp32_params"] = {"encoder.norm.weight": torch.full((4,), 1 / 3)}
    torch.save(state, "fp32.pt")
    run("average", "--inputs", "fp32.pt", "--ema", "--output", "ema.pt")
    averaged = torch.load("ema.pt", weights_only=True)
    torch.testing.assert_close(averaged["model"]["encoder.norm.weight"], torch.full((4,), 1 / 3), rtol=0, atol=0)
    assert "ema_fp32_params" not in averaged["extra_state"]


def legacy(architecture: str) -> dict:
    return {**checkpoint(1), "cfg": None, "args": argparse.Namespace(arch=architecture)}


def namespace(architecture: str) -> dict:
    return {**checkpoint(1), "cfg": {"model": argparse.Namespace(_name=architecture, arch=architecture)}}


@pytest.mark.parametrize("form", [legacy, namespace, lambda architecture: checkpoint(1, architecture)])
def test_mixed_architectures_are_refused_by_name(run, form):
    torch.save(form("transformer"), "other.pt")
    code, _, err = run("average", "--inputs", "checkpoint1.pt", "other.pt", "--output", "average.pt")
    assert code == 2
    assert "checkpoint1.pt is transformer_ext, other.pt is transformer" in err
    torch.save(form("transformer_ext"), "same.pt")
    assert run("average", "--inputs", "checkpoint1.pt", "same.pt", "--output", "average.pt")[0] == 0


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def damaged(kind: str) -> None:
    state = checkpoint(1)
    if kind == "missing key":
        del state["model"]["encoder.norm.weight"]
    elif kind == "other shape":
        state["model"]["encoder.norm.weight"] = torch.zeros(5)
    elif kind == "no model":
        state = {"state_dict": {}}
    elif kind == "tensor":
        state = torch.zeros(2)
    elif kind == "hostile":
        state["cfg"] = Hostile()
    elif kind == "no ema":
        del state["extra_state"]["ema"]
    torch.save(state, "bad.pt")
    if kind == "truncated":
        data = open("bad.pt", "rb").read()
        open("bad.pt", "wb").write(data[: len(data) // 2])
    elif kind == "empty":
        open("bad.pt", "wb").close()
    elif kind == "text":
        open("bad.pt", "w").write("<html>404</html>")
    elif kind == "not there":
        os.remove("bad.pt")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("name", "one", "other"), [("adanorm_k", 0.1, 0.2), ("attention_topk", 0, 8), ("heads", 4, 8)])
def test_models_that_compute_something_else_are_refused(run, nested, name, one, other):
    for file, value in (("checkpoint1.pt", one), ("checkpoint2.pt", other)):
        options = {"encoder": {name: value}} if nested else {name: value}
        torch.save(with_options(checkpoint(1), **options), file)
    code, _, err = run("average", "--inputs", "checkpoint1.pt", "checkpoint2.pt", "--output", "average.pt")
    shown = f"encoder.{name}" if nested else name
    assert code == 2 and not os.path.exists("average.pt") and len(err.splitlines()) == 1
    assert f"{shown} is {one!r} in checkpoint1.pt and {other!r} in checkpoint2.pt" in err


def test_namespaces_that_compute_something_else_are_refused(run):
    for number, heads in ((1, 4), (2, 8)):
        state = namespace("transformer_ext")
        vars(state["cfg"]["model"]).update(encoder_attention_heads=heads, seed=number, save_dir=str(number))
        torch.save(state, f"checkpoint{number}.pt")
    code, _, err = run("average", "--inputs", "checkpoint1.pt", "checkpoint2.pt", "--output", "average.pt")
    assert code == 2 and "encoder_attention_heads is 4 in checkpoint1.pt and 8 in checkpoint2.pt" in err


def test_options_of_the_training_may_differ(run):
    changes = {"dropout": 0.3, "encoder_layerdrop": 0.1, "init": "km", "checkpoint_activations": True}
    torch.save(with_options(checkpoint(1), **changes, quant_noise={"pq": 0.1}), "checkpoint1.pt")
    torch.save(with_options(checkpoint(2), encoder_layerdrop=0.0, init="", quant_noise={"pq": 0}), "checkpoint2.pt")
    run_of = ("average", "--inputs", "checkpoint1.pt", "checkpoint2.pt", "--output", "average.pt")
    assert run(*run_of)[0] == 0


@pytest.mark.parametrize("name", ["transformer_ext", "transformer_lm_ext"])
def test_every_option_of_what_a_model_computes_is_compared(name):
    from fairseq.models import MODEL_DATACLASS_REGISTRY

    import fairseq_ext.models  # noqa: F401

    skipped = {
        item.name for item in dataclasses.fields(MODEL_DATACLASS_REGISTRY[name]) if OF_TRAINING.fullmatch(item.name)
    }
    compared = ("norm", "adanorm", "attention_topk", "attention_normalizer", "cross_view", "block", "muse_kernels")
    assert not [option for option in skipped if option.startswith(compared) and option != "norm_detach"]
    assert not skipped & {"activation_fn", "encoder_attention_heads", "decoder_attention_heads", "attention_span"}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing key", "encoder.norm.weight is only in checkpoint1.pt"),
        ("other shape", "encoder.norm.weight is (4,) in checkpoint1.pt and (5,) in bad.pt"),
        ("no model", "bad.pt: not a fairseq checkpoint"),
        ("tensor", "bad.pt: not a fairseq checkpoint"),
        ("hostile", "mkdir"),
        ("truncated", "bad.pt: truncated"),
        ("empty", "bad.pt: truncated"),
        ("text", "bad.pt: "),
        ("not there", "bad.pt: No such file or directory"),
        ("no ema", "bad.pt holds no moving average"),
    ],
)
def test_bad_checkpoints_are_one_line(run, kind, message):
    damaged(kind)
    open("average.pt", "w").write("previous")
    options = ["--ema"] if kind == "no ema" else []
    code, out, err = run("average", "--inputs", "checkpoint1.pt", "bad.pt", "--output", "average.pt", *options)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert message in err
    assert open("average.pt").read() == "previous"
    assert not os.path.exists("owned")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inputs", "."], "--last N"),
        (["--inputs", ".", "--last", "9"], "--last 9: . holds 4 files named checkpoint<epoch>.pt"),
        (["--inputs", ".", "--last", "2", "--upper", "1"], "holds 1 files named checkpoint<epoch>.pt up to epoch 1"),
        (["--inputs", ".", "--last", "0"], "--last must be at least 1, got 0"),
        (["--inputs", ".", "--last", "many"], "invalid int value: 'many'"),
        (["--inputs", ".", "--last", "1", "--by", "hour"], "invalid choice: 'hour'"),
        (["--inputs", ".", "checkpoint1.pt", "--last", "1"], "either files or one folder"),
        (["--inputs", "checkpoint1.pt", "--last", "1"], "choose from a folder"),
        (["--inputs", "checkpoint1.pt", "--upper", "1"], "choose from a folder"),
        (["--inputs", "nowhere", "--last", "1"], "choose from a folder"),
        (["--inputs", "checkpoint1.pt", "--output", "nowhere/average.pt"], "nowhere does not exist"),
        (["--inputs", "checkpoint1.pt", "checkpoint2.pt", "./checkpoint1.pt"], "checkpoint1.pt: is there twice"),
        (["--inputs", "checkpoint1.pt", "--output", "."], "cannot write"),
        ([], "--inputs"),
    ],
)
def test_bad_options_are_one_line(run, arguments, message):
    output = [] if "--output" in arguments else ["--output", "average.pt"]
    code, out, err = run("average", *arguments, *output)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not os.path.exists("average.pt")


def test_a_full_disk_spares_the_previous_file(run, monkeypatch):
    open("average.pt", "w").write("previous")

    def full(obj, file):
        file.write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    code, _, err = run("average", "--inputs", "checkpoint1.pt", "--output", "average.pt")
    assert code == 2 and "cannot write average.pt" in err.splitlines()[-1]
    assert open("average.pt").read() == "previous"
    assert not os.path.exists("average.pt.tmp")


# --- user-dir, list ---------------------------------------------------------------------------------------------------


def test_user_dir_is_the_only_line(run):
    assert run("user-dir") == (0, f"{ROOT / 'fairseq_ext'}\n", "")


def test_user_dir_and_average_do_not_wait_for_fairseq(run):
    script = (
        "import sys; from fairseq_ext import cli; "
        "cli.main(['user-dir']); assert 'torch' not in sys.modules; "
        "assert cli.main(['average', '--inputs', 'checkpoint1.pt', '--output', 'x.pt']) == 0; "
        "assert 'fairseq' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def test_list_names_everything_we_register(run):
    from fairseq.criterions import CRITERION_REGISTRY
    from fairseq.models import ARCH_CONFIG_REGISTRY, MODEL_REGISTRY
    from fairseq.tasks import TASK_REGISTRY

    code, out, err = run("list")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line.split(maxsplit=1)[1:] for line in out.splitlines() if line.startswith("  ")}
    ours = {
        name
        for registry in (CRITERION_REGISTRY, ARCH_CONFIG_REGISTRY, MODEL_REGISTRY, TASK_REGISTRY)
        for name, thing in registry.items()
        if thing.__module__.startswith("fairseq_ext.")
    }
    assert lines.keys() == ours
    assert {"transformer_ext", "label_smoothed_encouraging_loss", "captioning"} <= ours
    undocumented = [name for name, summary in lines.items() if not summary]
    assert not undocumented, "each needs a first docstring line"
    assert "transformer_iwslt_de_en" not in lines


# --- recipe -----------------------------------------------------------------------------------------------------------


def test_recipe_lists_all_recipes(run):
    code, out, err = run("recipe")
    assert (code, err) == (0, "")
    rows = [line.split(maxsplit=2) for line in out.splitlines()]
    assert rows == [[name, recipe.alias, recipe.summary] for name, recipe in RECIPES.items()]


def test_recipe_prints_sources_and_commands(run):
    code, out, err = run("recipe", "muse_iwslt_de_en")
    assert (code, err) == (0, "")
    assert out == run("recipe", "iwslt14_de_en/muse")[1]
    recipe = RECIPES["muse_iwslt_de_en"]
    assert out == f"{sources(recipe)}\n{commands(recipe)}"
    options = ["--data", "d d", "--save-dir", "s", "--gpus", "2", "--device", "cuda", "--seed", "0", "--average", "3"]
    _, out, _ = run(
        "recipe", "muse_iwslt_de_en", *options, "--train-options", "--max-update", "5", "--data-buffer-size=2"
    )
    recipe = adapted(recipe, gpus=2, device="cuda", seed=0, average=3)
    train_options = ["--max-update", "5", "--data-buffer-size=2"]
    assert out == f"{sources(recipe, 'd d')}\n{commands(recipe, 'd d', 's', train_options)}"
    assert "recipe.sh prepare TEXT 'd d'" in out and f"{GIVEN}: seed 0, update_freq 2\n" in out


def test_recipe_prints_the_file_of_hydra(run):
    code, out, err = run("recipe", "muse_iwslt_de_en", "--yaml")
    assert (code, err) == (0, "")
    assert out == (ROOT / "fairseq_ext" / "conf" / "muse_iwslt_de_en.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["muse_iwslt_de"], "recipe 'muse_iwslt_de': there is none of this name; did you mean muse_iwslt_de_en, "),
        (["muse_iwslt_de_en", "--gpus", "0"], "--gpus 0: at least 1"),
        (["muse_iwslt_de_en", "--device", "cpu", "--gpus", "2"], "--gpus 2: at least 1, and 1 with --device cpu"),
        (["wmt14_en_fr/muse", "--average", "2"], "--average: muse_wmt_en_fr evaluates checkpoint_last.pt"),
        (["--gpus", "2"], "--gpus: no effect without the NAME of a recipe"),
        (["--yaml"], "--yaml: no effect without the NAME of a recipe"),
        (["muse_iwslt_de_en", "--yaml", "--seed", "1", "--data", "x"], "--data, --seed: no effect with --yaml"),
    ],
)
def test_recipe_refuses_in_one_line(run, arguments, message):
    code, out, err = run("recipe", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message) and len(err.splitlines()) == 1


def test_recipe_waits_for_neither_torch_nor_fairseq():
    script = (
        "import sys; from fairseq_ext import cli; cli.main(['recipe', 'muse_iwslt_de_en']); "
        "assert not {'torch', 'fairseq'} & sys.modules.keys()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, stdout=subprocess.DEVNULL)


# --- others -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "code"), [("doctor", 0), ("list", 2), ("user-dir", 0)])
def test_without_fairseq_the_command_stays_friendly(run, monkeypatch, command, code):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "fairseq" else find(name, *rest)
    )
    result, out, err = run(command)
    assert result == code
    assert "Traceback" not in out + err
    if command != "user-dir":
        assert "fairseq is not installed (pip install 'fairseq-ext[fairseq]'" in out + err


def test_a_package_that_is_missing_is_one_line(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "fairseq_ext.checkpoint_averaging", None)  # a fault of ours is none of theirs
    with pytest.raises(ModuleNotFoundError, match="checkpoint_averaging"):
        run("average", "--inputs", "checkpoint1.pt", "--output", "average.pt")


def test_help_and_version(run):
    assert run("--version")[:2] == (0, "fairseq-ext 0.1.0\n")
    code, out, _ = run("average", "--help")
    assert code == 0
    assert all(option in out for option in ("--inputs", "--output", "--last", "--by", "--upper", "--ema"))
    assert run()[0] == 2
    assert run("unknown")[0] == 2


@pytest.mark.parametrize("command", ["list", "captions"])
def test_a_reader_that_leaves_ends_a_command_quietly(monkeypatch, command):
    def leave(*arguments):
        print("x", flush=True)

    monkeypatch.setattr(cli, "_list", leave)
    monkeypatch.setattr(captions, "main", leave)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert cli.main([command]) == 0

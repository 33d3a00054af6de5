"""One table of recipes: what fairseq-train gets, what hydra gets and what is printed are the same values."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fairseq import options
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf, omegaconf_no_object_check
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.optim import build_optimizer
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import fairseq_ext
from examples.language_modeling import bpc
from examples.translation import score
from fairseq_ext.captions.__main__ import main as captions_main
from fairseq_ext.recipes import PRESETS, RECIPES, Recipe, find, values
from fairseq_ext.recipes.__main__ import CONF, main
from fairseq_ext.recipes.commands import GIVEN, adapted, commands, sources
from fairseq_ext.recipes.equal_settings import EQUAL_SETTINGS
from fairseq_ext.recipes.hydra import LISTS, RATE
from fairseq_ext.recipes.sections import SECTIONS
from fairseq_ext.training.errors import OptionError
from tests.helpers import ROOT, pasted

fairseq_ext.register()
every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))


def printed(recipe: Recipe, **given: Any) -> list[list[str]]:
    """The commands with what a user gives."""
    values = {name: given.pop(name) for name in ("gpus", "device", "seed", "average") if name in given}
    return pasted(commands(adapted(recipe, **values), **given))


def train_arguments(recipe: Recipe, **changes: Any) -> argparse.Namespace:
    """What fairseq's parser makes of the printed ``fairseq-train``."""
    name, *words = printed(recipe, **changes)[0]
    assert name == "fairseq-train"
    return options.parse_args_and_arch(options.get_training_parser(recipe.training["task"].value), words)


def evaluation_arguments(recipe: Recipe, **changes: Any) -> argparse.Namespace:
    """What fairseq's parser makes of the printed ``fairseq-generate`` or ``fairseq-eval-lm``."""
    (call,) = [call for call in printed(recipe, **changes) if call[0] in ("fairseq-generate", "fairseq-eval-lm")]
    parser = {"fairseq-generate": options.get_generation_parser, "fairseq-eval-lm": options.get_eval_lm_parser}[call[0]]
    return options.parse_args_and_arch(parser(), call[1:])


def hydra_file(recipe: Recipe) -> dict[str, dict[str, Any]]:
    return yaml.safe_load((CONF / f"{recipe.name}.yaml").read_text(encoding="utf-8"))


# --- the table --------------------------------------------------------------------------------------------------------


@every_recipe
def test_every_recipe_is_told_apart_and_sourced(recipe: Recipe) -> None:
    assert RECIPES[recipe.name] is find(recipe.name) is find(recipe.alias)
    assert recipe.summary.endswith(".") and "\n" not in recipe.summary
    assert ("average" in recipe.evaluation) != ("checkpoint" in recipe.evaluation)
    for settings in (PRESETS[recipe.arch].settings, recipe.model, recipe.training, recipe.evaluation):
        assert all(setting.source for setting in settings.values())


def test_every_preset_has_its_recipe() -> None:
    assert PRESETS.keys() <= RECIPES.keys()
    assert all(RECIPES[name].arch in (name, "transformer_ext_wmt_en_de") for name in PRESETS)
    assert len({recipe.alias for recipe in RECIPES.values()}) == len(RECIPES)


@every_recipe
def test_no_option_is_left_out_of_what_is_made(recipe: Recipe) -> None:
    listed = [option for section in SECTIONS.values() for option in section]
    assert set(recipe.training) <= set(listed)
    assert not {option for option, value in values(recipe.training | recipe.model).items() if value is False}


@every_recipe
def test_averaged_epochs_are_kept(recipe: Recipe) -> None:
    averaged = values(recipe.evaluation).get("average", 0)
    assert averaged <= values(recipe.training).get("keep_last_epochs", 0)


@pytest.mark.parametrize("recipe", EQUAL_SETTINGS, ids=lambda recipe: recipe.name)
def test_equal_settings_are_equal(recipe: Recipe) -> None:
    """But for the block of MUSE, which is deeper, narrower and has other initial weights."""
    training, model = (values(part) for part in (recipe.training, PRESETS[recipe.arch].settings | recipe.model))
    baseline = find(f"{recipe.data.name}/transformer")
    for option in ("criterion", "log_end"):
        training.pop(option, None)
    assert training.items() <= values(baseline.training).items()
    assert (model["dropout"], model["share_all_embeddings"]) == (0.3, True)
    assert model.get("init", "fairseq") == ("km" if recipe.method.startswith("muse") else "fairseq")


@pytest.mark.parametrize(
    ("name", "near"),
    [("muse_iwslt_de", "muse_iwslt_de_en"), ("multi30k/muze", "multi30k/muse"), ("MUSE", ""), ("", ""), ("../x", "")],
)
def test_an_unknown_name_is_refused_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(OptionError) as refusal:
        find(name)
    message = str(refusal.value)
    assert "\n" not in message and repr(name) in message and near in message and "`fairseq-ext recipe`" in message


# --- what is printed --------------------------------------------------------------------------------------------------


@every_recipe
def test_fairseq_reads_the_printed_commands_as_the_table_has_them(recipe: Recipe) -> None:
    train = vars(train_arguments(recipe))
    model = values(PRESETS[recipe.arch].settings | recipe.model)
    expected = {**model, **values(recipe.training)}
    expected |= {option: [expected[option]] for option in LISTS}
    assert {option: train[option] for option in expected} == expected
    assert (train["data"], train["arch"]) == (recipe.data.folder, recipe.arch)

    evaluation = vars(evaluation_arguments(recipe))
    decoding = values(recipe.evaluation)
    average, checkpoint = decoding.pop("average", 0), decoding.pop("checkpoint", "checkpoint_average.pt")
    decoding["post_process"] = decoding.pop("remove_bpe", None)
    assert {option: evaluation[option] for option in decoding} == decoding
    assert evaluation["path"] == f"{train['save_dir']}/{checkpoint}"
    assert (evaluation["fp16"], evaluation["gen_subset"]) == (values(recipe.training).get("fp16", False), "test")

    averages = [call for call in printed(recipe) if call[:2] == ["fairseq-ext", "average"]]
    output = ["--output", evaluation["path"]]
    expected_average = ["fairseq-ext", "average", "--inputs", train["save_dir"], "--last", str(average), *output]
    assert averages == ([expected_average] if average else [])


@every_recipe
def test_the_scores_are_those_of_our_tools(recipe: Recipe) -> None:
    tools = {"examples.translation.score": score.main, "examples.language_modeling.bpc": bpc.main}
    program, *words = printed(recipe)[-1]
    if program == "grep":  # fairseq's own figure, and a failure where there is none
        assert words == ["Loss (base 2)", f"checkpoints/{recipe.name}/eval.log"]
        return
    if program == "fairseq-ext":
        assert words.pop(0) == "captions"
        captions_main.parser().parse_args(words)
        return
    tools[words[1]].parser().parse_args(words[2:])


@every_recipe
def test_every_value_is_printed_with_its_source(recipe: Recipe) -> None:
    text = sources(recipe)
    assert all(line.startswith("#") and len(line) <= 120 for line in text.splitlines())
    assert not pasted(text)
    words = " ".join(text.replace("#", " ").split())
    for settings in (PRESETS[recipe.arch].settings | recipe.model, recipe.training, recipe.evaluation):
        for option, (value, source) in settings.items():
            assert f"{option} {value}" in words and f"{source}: " in words


@every_recipe
def test_the_comment_has_the_values_of_the_commands(recipe: Recipe) -> None:
    """Also where a user has changed them: they then have a source of their own, and no other."""
    averaged = {"average": 20} if "average" in recipe.evaluation else {}
    for given in ({"gpus": 5, "seed": 7, **averaged}, {"device": "cpu"}):
        changed, train = adapted(recipe, **given), vars(train_arguments(recipe, **given))
        chosen = {option: value for option, (value, source) in changed.training.items() if source == GIVEN}
        assert chosen
        words = " ".join(sources(changed).replace("#", " ").split())
        for option, value in chosen.items():
            assert train[option] in (value, [value]) and f" {option} {value}" in words
            assert option not in recipe.training or f" {option} {recipe.training[option].value}," not in words
    assert adapted(recipe) == recipe


@pytest.mark.parametrize(("gpus", "steps"), [(1, 128), (3, 43), (4, 32), (8, 16), (500, 1)])
def test_an_update_sees_as_much_on_any_number_of_gpus(gpus: int, steps: int) -> None:
    assert train_arguments(find("wmt14_en_de/muse"), gpus=gpus).update_freq == [steps]


@pytest.mark.parametrize(
    ("name", "gpus", "sizes", "times"),
    [
        ("tatoeba/muse", 4, {"update_freq": 1, "max_tokens": 1024}, 1),
        ("tatoeba/muse", 8, {"update_freq": 1, "max_tokens": 4096}, 8),  # a batch would not hold the longest sentence
        ("tatoeba/muse", 3, {"update_freq": 1, "max_tokens": 4096}, 3),
        ("enwik8/explicit-sparse", 8, {"update_freq": 1, "max_tokens": 2048}, 1),
        ("enwik8/explicit-sparse-span", 8, {"update_freq": 1, "max_tokens": 4096}, 1),
        ("enwik8/explicit-sparse", 64, {"update_freq": 1, "max_tokens": 8192}, 32),  # of samples of 512
        ("wmt14_en_de/muse", 3, {"update_freq": 43, "max_tokens": 3584}, 129 / 128),
        ("coco/encouraging", 2, {"update_freq": 1, "batch_size": 25}, 1),
        ("coco/encouraging", 4, {"update_freq": 1, "batch_size": 50}, 4),
    ],
)
def test_batches_are_divided_too_or_it_is_said(name: str, gpus: int, sizes: dict[str, int], times: float) -> None:
    recipe = adapted(find(name), gpus=gpus)
    train = vars(train_arguments(find(name), gpus=gpus))
    assert {option: train[option] for option in sizes} == sizes | {"update_freq": [sizes["update_freq"]]}
    assert recipe.times == pytest.approx(times) and train["distributed_world_size"] == gpus
    size = next(option for option in ("max_tokens", "batch_size") if option in recipe.training)
    seen, meant = (
        changed.gpus * changed.training["update_freq"].value * changed.training[size].value
        for changed in (recipe, find(name))
    )
    assert seen / meant == pytest.approx(times)
    said = f"an update sees {times:.3g} times the recipe's tokens" in " ".join(sources(recipe).split())
    assert said == (times != 1)


def test_no_training_is_written_where_another_one_is() -> None:
    """Each seed and each change of the training has a folder of its own; the recipe's is named after it alone."""
    recipe = find("enwik8/explicit-sparse")
    long = ["--attention-topk", "0", *("--valid-subset", "valid," * 30)]
    changes = [{}, {"seed": 2}, {"seed": 12}, {"train_options": ["--attention-topk", "0"]}]
    changes += [{"train_options": long}, {"train_options": [*long[:-1], "valid," * 31]}]
    changes += [{"seed": 2, "train_options": ["--attention-topk", "0"]}, {"train_options": ["--lr", "1e-3"]}]
    changes += [{"train_options": ["--lr", "1e3"]}, {"train_options": ["--adam-betas", "(0.9, 0.98)"]}]
    folders = [train_arguments(recipe, **given).save_dir for given in changes]
    assert len(set(folders)) == len(folders) and all(folder.count("/") == 1 and len(folder) < 150 for folder in folders)
    assert folders[0] == f"checkpoints/{recipe.name}"
    assert folders[1] == f"{folders[0]}-seed-2" and folders[3] == f"{folders[0]}-attention-topk-0"
    assert train_arguments(recipe, seed=recipe.training["seed"].value).save_dir == folders[0]
    for given, folder in zip(changes, folders, strict=True):
        assert evaluation_arguments(recipe, **given).path == f"{folder}/checkpoint_best.pt"


def test_what_a_user_gives_wins() -> None:
    recipe = find("multi30k/gca")
    own = {"data": "my data", "save_dir": "it's", "seed": 7, "average": 20, "device": "cpu"}
    train = train_arguments(recipe, **own, train_options=["--max-update", "5", "--adam-betas", "(0.8, 0.9)"])
    assert (train.data, train.save_dir, train.seed, train.max_update) == ("my data", "it's", 7, 5)
    assert (train.adam_betas, train.cpu, train.fp16, train.keep_last_epochs) == ("(0.8, 0.9)", True, False, 20)
    evaluation = evaluation_arguments(recipe, **own)
    assert (evaluation.data, evaluation.path) == ("my data", "it's/checkpoint_average.pt")
    assert (evaluation.cpu, evaluation.fp16) == (True, False)
    assert ["--last", "20"] == printed(recipe, **own)[1][4:6]
    assert printed(recipe, **own)[3][3] == "it's/generate.txt"


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("multi30k/gca", {"gpus": 0}, "--gpus 0"),
        ("multi30k/gca", {"gpus": 2, "device": "cpu"}, "--gpus 2"),
        ("multi30k/gca", {"average": 0}, "--average 0"),
        ("multi30k/gca", {"seed": -1}, "--seed -1: from 0 to 4294967295"),
        ("multi30k/gca", {"seed": 2**32}, "--seed 4294967296: from 0 to 4294967295"),
        ("multi30k/gca", {"train_options": ["--seed", "1", "--save-dir", "x"]}, "--train-options --save-dir"),
        ("multi30k/gca", {"train_options": ["--save-dir=x"]}, "--train-options --save-dir"),
        ("multi30k/gca", {"train_options": ["--cpu"]}, "--train-options --cpu"),
        ("iwslt14_de_en/adanorm", {"average": 5}, "evaluates checkpoint_best.pt"),
    ],
)
def test_what_cannot_be_is_refused(name: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        printed(find(name), **given)


# --- hydra ------------------------------------------------------------------------------------------------------------


def test_the_files_of_hydra_are_those_that_the_table_makes(tmp_path: Path) -> None:
    (tmp_path / "of_a_recipe_that_is_gone.yaml").touch()
    main(tmp_path)
    written, stored = ({file.name: file.read_text() for file in folder.iterdir()} for folder in (tmp_path, CONF))
    assert written.keys() == stored.keys() == {f"{name}.yaml" for name in RECIPES}
    drift = [name for name in written if written[name] != stored[name]]
    assert not drift, "run `make recipes`"


@every_recipe
def test_hydra_gets_what_the_command_line_gets(recipe: Recipe) -> None:
    """Each field of the file has the command's value, and the command sets nothing else."""
    arguments = vars(train_arguments(recipe))
    fields = {}
    for section, settings in hydra_file(recipe).items():
        for option, value in settings.items():
            if value == "${optimization.lr}":
                continue
            fields[section if option == "_name" else option] = value
    model = fields.pop("model")
    for machine in ("user_dir", "data"):
        assert fields.pop(machine) == "???"
    assert model == PRESETS[recipe.arch].model
    assert {option: arguments[option] for option in fields} == fields

    flags = {word[2:].replace("-", "_") for word in printed(recipe)[0] if word.startswith("--")}
    assert flags - {"user_dir", "save_dir", "arch", "distributed_world_size"} <= fields.keys()
    assert fields.keys() == set(recipe.training) | set(PRESETS[recipe.arch].settings) | set(recipe.model)


@every_recipe
def test_every_field_of_the_file_exists_in_fairseq(recipe: Recipe) -> None:
    for section, settings in hydra_file(recipe).items():
        chosen = settings.get("_name")
        if chosen is None:
            config = FairseqConfig.__dataclass_fields__[section].type
        elif section in ("model", "task"):
            config = {"model": MODEL_DATACLASS_REGISTRY, "task": TASK_DATACLASS_REGISTRY}[section][chosen]
        elif chosen in RATE:
            continue  # built below
        else:
            config = REGISTRIES[section]["dataclass_registry"][chosen]
        unknown = set(settings) - {field.name for field in dataclasses.fields(config)} - {"_name"}
        assert not unknown, (section, unknown)


@pytest.mark.parametrize(
    "recipe", [recipe for recipe in RECIPES.values() if recipe.training["optimizer"].value in RATE]
)
def test_an_optimizer_without_a_dataclass_is_built_from_the_file(recipe: Recipe) -> None:
    config = OmegaConf.create(hydra_file(recipe))
    optimizer = build_optimizer(config.optimizer, [torch.nn.Parameter(torch.zeros(1))])
    expected = {"lr": recipe.training["lr"].value, "weight_decay": recipe.training["weight_decay"].value}
    assert optimizer.optimizer_config == expected


@pytest.mark.filterwarnings("ignore")  # hydra's, of what fairseq asks it to do
@pytest.mark.parametrize(
    "name",
    [
        *("explicit_sparse_transformer_iwslt_en_vi", "encouraging_transformer_wmt_en_fr_big"),
        *("transformer_lm_ext_wiki103", "encouraging_captioning_coco"),
    ],
)
def test_whole_configurations_agree(name: str) -> None:
    """As fairseq itself composes them, every field of every section, with all defaults."""
    recipe = find(name)
    from_command = OmegaConf.to_container(convert_namespace_to_omegaconf(train_arguments(recipe)))
    GlobalHydra.instance().clear()
    hydra_init(name)
    machine = {"common.user_dir": ROOT / "fairseq_ext", "task.data": recipe.data.folder}
    machine["++checkpoint.save_dir"] = f"checkpoints/{name}"
    with initialize_config_dir(str(CONF), version_base="1.1"):
        config = compose(name, overrides=[f"{option}={value}" for option, value in machine.items()])
    add_defaults(config)
    with omegaconf_no_object_check():
        from_file = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    GlobalHydra.instance().clear()

    assert from_command["model"].pop("_name") == recipe.arch
    assert from_file["model"].pop("_name") == PRESETS[recipe.arch].model
    for section in ("distributed_training", "bmuf"):
        assert from_command[section].pop("distributed_world_size") == recipe.gpus
        del from_file[section]["distributed_world_size"]  # all that the machine has
    del from_command["scoring"], from_file["scoring"]  # of validation; hydra has no default for it
    assert from_command == from_file

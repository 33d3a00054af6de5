"""The published recipes of images: their values, and that train takes what is printed."""

from __future__ import annotations

import math

import pytest

from fairseq_ext.training.errors import InputError
from fairseq_ext.training.sources import OURS
from tests.published import IMAGE_RECIPES
from vision_language.image_classification.__main__ import Output, main
from vision_language.image_classification.options import Options
from vision_language.image_classification.recipes import RECIPES
from vision_language.image_classification.training_step import lr_factor


def test_there_are_the_recipes_that_were_published():
    assert RECIPES.keys() == IMAGE_RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_claims_what_was_published_and_nothing_else(name):
    source, expected = IMAGE_RECIPES[name]
    settings = RECIPES[name].settings.items()
    assert {option: value for option, (value, by) in settings if not by.startswith(OURS)} == expected, source


@pytest.fixture
def trained(tmp_path, capsys):
    """The options of a training with the file of a recipe."""

    def options_of(name: str, *words: str) -> dict[str, object]:
        main(["recipe", name])
        file = tmp_path / "recipe.yaml"
        file.write_text(capsys.readouterr().out)
        arguments = ["train", "--config", str(file), "--data", "x", *words]
        parsed = main.parser(str(file), "train").parse_args(arguments)
        return Options.of(parsed).as_dict() | Output.of(parsed).as_dict()

    return options_of


@pytest.mark.parametrize("name", RECIPES)
def test_train_takes_the_file_of_a_recipe(name, trained):
    """Each option as it stands, no other that is not at its default, and nothing that has no effect."""
    settings = RECIPES[name].settings
    words = ("--init", "first") if "freeze" in settings else ()
    given = {option: setting.value for option, setting in settings.items()}
    expected = Options.defaults() | Output.defaults() | {"data": "x"} | given
    assert trained(name, *words) == expected | ({"init": "first"} if words else {})


def test_steps_are_those_of_the_released_schedules(trained):
    """timm's: .97 to the number of whole 2.4 epochs that are over; torchvision's: a tenth every 30."""

    def rates(name: str, epochs: range) -> list[float]:
        values = {key: value for key, value in trained(name).items() if key in Options.__dataclass_fields__}
        return [lr_factor(Options(**values), epoch) for epoch in epochs]

    smooth = [0.97 ** math.floor((epoch - 1) / 2.4) for epoch in range(1, 451)]
    assert rates("imagenet-efficientnet-b0-el", range(1, 451)) == pytest.approx(smooth)
    thirds = [0.1 ** ((epoch - 1) // 30) for epoch in range(1, 91)]
    assert rates("imagenet-resnet50-ce", range(1, 91)) == pytest.approx(thirds)


def test_the_list_and_an_unknown_name(capsys):
    main(["recipe"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(RECIPES)
    with pytest.raises(InputError, match=r"^recipe: 'mnist-le' is not one of .*; did you mean 'mnist-[ce]"):
        main(["recipe", "mnist-le"])

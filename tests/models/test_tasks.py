"""fairseq's tasks: those of another kind of model refuse ours in one line that names both."""

from __future__ import annotations

from typing import Any

import pytest
from fairseq.models import build_model
from fairseq.tasks import TASK_REGISTRY
from omegaconf import DictConfig

from fairseq_ext.training.errors import OptionError
from tests.models.commands import TINY, configuration
from tests.models.tiny import dictionary

STOCK = {name: task for name, task in TASK_REGISTRY.items() if task.__module__.startswith("fairseq.tasks.")}
TRANSLATION = {
    *("translation", "translation_multi_simple_epoch", "translation_from_pretrained_bart", "online_backtranslation"),
    *("translation_from_pretrained_xlm", "simul_text_to_text", "denoising", "multilingual_denoising", "span_masked_lm"),
}
LANGUAGE_MODELING = {"language_modeling", "multilingual_language_modeling"}
MULTIPLE = {"multilingual_translation", "semisupervised_translation"}
WIDTHS = {name: value for name, value in TINY.items() if name.startswith("decoder")}


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in STOCK.values():
        monkeypatch.setattr(task, "source_dictionary", dictionary(), raising=False)
        monkeypatch.setattr(task, "target_dictionary", dictionary(), raising=False)


def bare(name: str) -> Any:
    """A task as far as building a model asks for it."""
    return object.__new__(STOCK[name])


@pytest.fixture(scope="module")
def translation() -> DictConfig:
    return configuration("transformer_ext", TINY)


@pytest.fixture(scope="module")
def language_model() -> DictConfig:
    return configuration("transformer_lm_ext", WIDTHS, task="language_modeling")


@pytest.mark.parametrize("name", sorted(STOCK.keys() - TRANSLATION))
def test_refused_by_transformer_ext(name: str, translation: DictConfig) -> None:
    with pytest.raises(OptionError, match=f"--task {name}: not for transformer_ext") as caught:
        build_model(translation.model, bare(name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(STOCK.keys() - LANGUAGE_MODELING))
def test_refused_by_transformer_lm_ext(name: str, language_model: DictConfig) -> None:
    with pytest.raises(OptionError, match=f"--task {name}: not for transformer_lm_ext"):
        build_model(language_model.model, bare(name))


@pytest.mark.parametrize("name", sorted(TRANSLATION | LANGUAGE_MODELING))
def test_the_others_build(name: str, translation: DictConfig, language_model: DictConfig) -> None:
    cfg = translation if name in TRANSLATION else language_model
    assert build_model(cfg.model, bare(name)).decoder.num_layers == 3


@pytest.mark.parametrize("arch", ["transformer_ext", "transformer"])
@pytest.mark.parametrize("name", sorted(MULTIPLE))
def test_several_pairs_of_languages_need_several_models(name: str, arch: str) -> None:
    cfg = configuration(arch, TINY)
    with pytest.raises(OptionError, match=f"--task {name}: needs a model of several pairs.*got {arch};"):
        bare(name).build_model(cfg.model)

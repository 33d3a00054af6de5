"""The fairseq criterion: fixtures of the released criterion, fairseq's conventions, and its options."""

from __future__ import annotations

import argparse
import dataclasses
import math

import pytest
import torch
from fairseq import criterions
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.logging import metrics
from omegaconf import OmegaConf

from fairseq_ext.criterions import LabelSmoothedEncouragingLossCriterion as Criterion
from fairseq_ext.criterions import LabelSmoothedEncouragingLossCriterionConfig as Config
from fairseq_ext.training.errors import OptionError
from tests.helpers import golden_names, load_golden

EXACT = dict(rtol=1e-10, atol=1e-10)


class Dictionary:
    def pad(self):
        return 1


class Task:
    target_dictionary = Dictionary()


class Model(torch.nn.Module):
    """Returns the logits it was given, as a fairseq decoder would."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits.clone())

    def forward(self):
        return self.logits, None

    def get_normalized_probs(self, net_output, log_probs):
        assert log_probs
        # float64 stays float64 here: the fixtures are exact.
        return net_output[0].to(torch.promote_types(net_output[0].dtype, torch.float32)).log_softmax(-1)

    def get_targets(self, sample, net_output):
        return sample["target"]


def batch(logits, target):
    return Model(logits), {"net_input": {}, "target": target, "ntokens": int((target != 1).sum())}


def fixture(name):
    return {key: torch.as_tensor(value) for key, value in load_golden("encouraging_loss", name).items()}


def fixture_cases(data):
    for i, log_end in enumerate(data["log_end"].tolist()):
        for j, epsilon in enumerate(data["epsilon"].tolist()):
            yield f"le{i}_eps{j}", log_end, epsilon


@pytest.fixture
def random_batch():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, 6, 11, generator=generator, dtype=torch.float64)
    target = torch.randint(2, 11, (3, 6), generator=generator)
    target[1, 4:] = target[2, 3:] = 1
    return batch(logits, target)


@pytest.mark.parametrize("name", golden_names("encouraging_loss", "ls_"))
def test_released_criterion(name):
    data = fixture(name)
    for key, log_end, epsilon in fixture_cases(data):
        model, sample = batch(data["logits"], data["target"])
        loss, sample_size, log = Criterion(Task, False, epsilon, report_accuracy=True, log_end=log_end)(model, sample)
        loss.backward()
        torch.testing.assert_close(loss.detach(), data[f"{key}_loss"], **EXACT)
        torch.testing.assert_close(log["nll_loss"], data[f"{key}_nll"], **EXACT)
        torch.testing.assert_close(model.logits.grad, data[f"{key}_grad"], **EXACT)
        assert sample_size == log["sample_size"] == data["sample_size_tok"]
        for count in ("ntokens", "nsentences", "n_correct", "total"):
            assert log[count] == data[count], count


@pytest.mark.parametrize("name", golden_names("encouraging_loss", "ls_"))
def test_unreduced_prefix_and_sentence_average(name):
    data = fixture(name)
    for key, log_end, epsilon in fixture_cases(data):
        model, sample = batch(data["logits"], data["target"])
        loss, sample_size, log = Criterion(Task, True, epsilon, log_end=log_end)(model, sample, reduce=False)
        assert loss.shape == log["nll_loss"].shape == log["bonus"].shape == (data["target"].numel(), 1)
        torch.testing.assert_close(loss.view_as(data["target"]), data[f"{key}_pertoken"], **EXACT)
        assert sample_size == data["sample_size_sent"]
        prefix = Criterion(Task, False, epsilon, ignore_prefix_size=2, log_end=log_end)(model, sample)[0]
        torch.testing.assert_close(prefix, data[f"{key}_prefix2_loss"], **EXACT, check_dtype=False)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("reduce", [True, False])
def test_without_bonus_is_fairseqs_criterion(random_batch, epsilon, reduce):
    model, sample = random_batch
    expected, _, expected_log = LabelSmoothedCrossEntropyCriterion(Task, False, epsilon)(model, sample, reduce)
    form = {"smoothing_form": "off-target"} if epsilon else {}
    loss, _, log = Criterion(Task, False, epsilon, bonus_weight=0.0, **form)(model, sample, reduce)
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(log["nll_loss"], expected_log["nll_loss"], **EXACT)
    assert not log["bonus"].any()
    gradient, expected_gradient = (torch.autograd.grad(x.sum(), model.logits)[0] for x in (loss, expected))
    torch.testing.assert_close(gradient, expected_gradient, **EXACT)


def test_validation_loss_has_no_bonus(random_batch):
    model, sample = random_batch
    criterion = Criterion(Task, False, 0.1)
    train_loss, _, train_log = criterion(model, sample)
    loss, _, log = criterion.eval()(model, sample)
    assert log["bonus"] == train_log["bonus"] < 0
    torch.testing.assert_close(train_loss, loss + log["bonus"])
    torch.testing.assert_close(loss, Criterion(Task, False, 0.1, bonus_weight=0.0)(model, sample)[0])
    kept, _, _ = Criterion(Task, False, 0.1, bonus_at_validation=True).eval()(model, sample)
    torch.testing.assert_close(kept, train_loss)


def test_compute_loss_is_the_hook_of_other_criterions(random_batch):
    model, sample = random_batch
    criterion = Criterion(Task, False, 0.1)
    loss, nll_loss = criterion.compute_loss(model, model(), sample)
    assert loss == criterion(model, sample)[0] and nll_loss == criterion(model, sample)[2]["nll_loss"]


def test_padding_has_no_gradient(random_batch):
    model, sample = random_batch
    Criterion(Task, False, 0.1)(model, sample)[0].backward()
    padding = sample["target"] == 1
    assert not model.logits.grad[padding].any() and model.logits.grad[~padding].any(-1).all()


def test_task_without_dictionary(random_batch):
    model, sample = random_batch

    class NoDictionary:
        target_dictionary = None

    loss, _, _ = Criterion(NoDictionary, False, 0.1)(model, sample, reduce=False)
    assert loss.all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_model(random_batch, dtype):
    model, sample = random_batch
    half = Model(model.logits.detach().to(dtype))
    reference = Model(half.logits.detach().double())
    criterion = Criterion(Task, False, 0.1).to(dtype)
    losses = [criterion(m, sample)[0] for m in (half, reference)]
    for loss in losses:
        loss.backward()
    assert losses[0].dtype == torch.float32 and half.logits.grad.dtype == dtype
    torch.testing.assert_close(losses[0].double(), losses[1], rtol=1e-5, atol=1e-5)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(half.logits.grad.double(), reference.logits.grad, rtol=eps, atol=eps)


def test_metrics(random_batch):
    model, sample = random_batch
    assert Criterion.logging_outputs_can_be_summed()
    log = Criterion(Task, False, 0.1, report_accuracy=True)(model, sample)[2]
    assert all(isinstance(value, int) or value.numel() == 1 for value in log.values())
    with metrics.aggregate() as aggregated:
        Criterion.reduce_metrics([log, log])
    values = aggregated.get_smoothed_values()
    for key in ("loss", "bonus", "nll_loss"):
        assert values[key] == pytest.approx(log[key].item() / sample["ntokens"] / math.log(2), abs=1e-3)
    assert values["ppl"] == pytest.approx(2 ** values["nll_loss"], rel=1e-2)
    assert values["accuracy"] == pytest.approx(100 * log["n_correct"].item() / log["total"].item(), abs=1e-3)


@pytest.mark.parametrize("flag", ["--log-end", "--log_end"])
def test_command_line_and_registry(flag):
    parser = argparse.ArgumentParser()
    Criterion.add_args(parser)
    arguments = "--label-smoothing 0.1 --bonus-clamp 0 --smoothing-form off-target --bonus-at-validation"
    args = parser.parse_args([flag, "1", *arguments.split()])
    args.criterion, args.sentence_avg = "label_smoothed_encouraging_loss", False
    criterion = criterions.build_criterion(args, Task)
    assert type(criterion) is Criterion
    assert (criterion.eps, criterion.log_end, criterion.bonus_clamp) == (0.1, 1.0, 0.0)
    assert criterion.smoothing_form == "off-target" and criterion.bonus_at_validation


def test_hydra_config(random_batch):
    config = OmegaConf.merge(OmegaConf.structured(Config), {"log_end": 0.9, "sentence_avg": True})
    config._name = "label_smoothed_encouraging_loss"
    criterion = criterions.build_criterion(config, Task)
    assert criterion.log_end == 0.9 and criterion.sentence_avg
    assert criterion(*random_batch)[1] == 3
    assert not criterion.state_dict()


# a value that is not the default, what it needs, what makes it do nothing (None: nothing does), values out of range
OPTIONS = {
    "sentence_avg": (True, {}, None, []),
    "label_smoothing": (0.2, {}, None, [-0.1, 1.5]),
    "ignore_prefix_size": (2, {}, None, [-1]),
    "report_accuracy": (True, {}, None, []),
    "log_end": (0.25, {}, {"bonus_weight": 0.0}, [-0.1, 1.5]),
    "bonus_weight": (0.5, {}, None, [-1.0]),
    "bonus_clamp": (1e-3, {"log_end": 1.0}, {"log_end": 0.75}, [-0.1, 0.5]),
    "smoothing_form": ("off-target", {"label_smoothing": 0.1}, {"label_smoothing": 0.0}, []),
    "bonus_at_validation": (True, {}, {"bonus_weight": 0.0}, []),
}


def outcome(**options):
    """Everything that a training and a validation batch give; the first target is all but certain."""
    options = {"sentence_avg": False, "label_smoothing": 0.0, **options}
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 11, generator=generator, dtype=torch.float64)
    target = torch.randint(2, 11, (3, 6), generator=generator)
    logits[:, :3].scatter_(-1, target[:, :3, None], 12.0)
    criterion = Criterion(Task, **options)
    return [*criterion(*batch(logits, target)), *criterion.eval()(*batch(logits, target))]


def test_every_option_has_a_row():
    names = {field.name for field in dataclasses.fields(Config)} - {"_name"}
    # which changes no number: tests/criterions/test_fused_output_loss.py
    assert names == {*OPTIONS, "fused_output_loss"}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_changes_something_or_is_refused(name):
    value, beside, idle, _ = OPTIONS[name]
    assert repr(outcome(**beside, **{name: value})) != repr(outcome(**beside))
    if idle is not None:
        outcome(**idle)
        with pytest.raises(OptionError, match=f"^--{name.replace('_', '-')}.*: has no effect with"):
            outcome(**idle, **{name: value})


@pytest.mark.parametrize("name", OPTIONS)
def test_every_number_has_limits(name):
    value, beside, _, beyond = OPTIONS[name]
    assert bool(beyond) == (type(value) in (int, float))
    for wrong in beyond + [math.nan, math.inf] * isinstance(value, float):
        with pytest.raises(OptionError, match=f"^--{name.replace('_', '-')} must be .*, got {wrong}$"):
            outcome(**beside, **{name: wrong})

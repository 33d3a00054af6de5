"""Label graph, soft targets and their loss: fixtures with gradients, limits, and the other binary losses."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graph.label_graph import LabelGraph, label_graph_loss, label_graph_loss_terms, soft_targets
from graph.label_graph.label_graph import LOSSES
from tests.helpers import golden_names, load_golden, python_blocks

EXACT = dict(rtol=1e-10, atol=1e-10)


def layer(weight, position="scores"):
    graph = LabelGraph(len(weight), position).to(weight.dtype)
    graph.weight.data.copy_(weight)
    return graph


def case(seed=0, samples=6, labels=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, labels, generator=generator, dtype=dtype)
    target = (torch.rand(samples, labels, generator=generator) < 0.4).to(dtype)
    graph = torch.eye(labels, dtype=dtype) + 0.3 * torch.randn(labels, labels, generator=generator, dtype=dtype)
    return logits, target, graph


@pytest.mark.parametrize("name", golden_names("rmsc", "loss_"))
def test_fixture_forward_and_gradients(name):
    data = {key: torch.as_tensor(value) for key, value in load_golden("rmsc", name).items()}
    z, weight, bias = (data[key].clone().requires_grad_() for key in ("z", "W", "b"))
    graph = layer(data["G"], "scores" if data["pre_rel"] else "probabilities")
    logits = graph(F.linear(z, weight, bias))
    options = {"temperature": float(data["temperature"]), "stop_gradient": bool(data["stop_gradient"])}
    ratios = {"ratio1": float(data["ratio1"]), "ratio2": float(data["ratio2"])}
    loss = label_graph_loss(logits, data["y"], graph.weight, **ratios, **options)
    terms = label_graph_loss_terms(logits, data["y"], graph.weight, **options)
    loss.backward()

    torch.testing.assert_close(logits.sigmoid(), data["prob"], **EXACT)
    torch.testing.assert_close(soft_targets(data["y"], graph.weight, **options), data["soft_target"], **EXACT)
    for value, key in zip((loss, *terms), ("loss", "loss_hard", "loss_soft", "reg"), strict=True):
        torch.testing.assert_close(value, data[key], **EXACT)
    for value, key in ((z, "z"), (weight, "W"), (bias, "b"), (graph.weight, "G")):
        torch.testing.assert_close(value.grad, data[f"grad_{key}"], **EXACT)


@pytest.mark.parametrize("position", ["scores", "probabilities"])
def test_new_graph_changes_nothing(position):
    scores = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(LabelGraph(5, position).double()(scores), scores)


def test_noise_is_on_the_identity():
    torch.manual_seed(0)
    difference = LabelGraph(200, noise=0.1).weight.detach() - torch.eye(200)
    assert difference.std() == pytest.approx(0.1, rel=0.05) and abs(difference.mean()) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mixed_probabilities_stay_finite(dtype):
    graph = layer(torch.eye(4, dtype=dtype) * 3 - 1, "probabilities")
    logits = graph(torch.linspace(-9, 9, 12, dtype=dtype).view(3, 4))
    assert logits.dtype == torch.float32 and logits.isfinite().all()


def autocast_or_half(value, how):
    """A context, and ``value`` as it is then: in float32 under autocast, or of half precision itself."""
    if how == "autocast":
        return torch.autocast("cpu", torch.bfloat16), value
    return contextlib.nullcontext(), value.to(how)


@pytest.mark.parametrize("how", ["autocast", torch.bfloat16, torch.float16], ids=str)
def test_mixed_probabilities_are_clamped_where_float32_ends(how):
    context, scores = autocast_or_half(torch.tensor([[-8.0, 8.0, -30.0, 30.0]], requires_grad=True), how)
    scores.retain_grad()
    with context:
        logits = LabelGraph(4, "probabilities")(scores)
    expected = torch.logit(scores.detach().float().sigmoid(), eps=torch.finfo(torch.float32).eps)
    torch.testing.assert_close(logits, expected)
    logits.sum().backward()
    assert (scores.grad[0, :2] > 0.9).all() and (scores.grad[0, 2:] == 0).all()


@pytest.mark.parametrize("how", ["autocast", torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_soft_targets_are_computed_in_float32(how, temperature):
    _, target, graph = case(dtype=torch.float32)
    context, graph = autocast_or_half(graph, how)
    with context:
        soft = soft_targets(target, graph, temperature)
    torch.testing.assert_close(soft, soft_targets(target, graph.float(), temperature))


def test_score_of_a_label_flows_along_its_row():
    graph = layer(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    torch.testing.assert_close(graph(torch.tensor([[2.0, 0.0]])), torch.tensor([[2.0, 1.0]]))


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5}, {"loss": "encouraging"}, {"loss": "halted-focal"}])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_gradients(options, stop_gradient):
    scores, target, weight = case(samples=3, labels=4)

    def loss(scores, weight):
        # with the stopped gradient the numeric derivative must not move the target either
        soft = weight.detach() if stop_gradient else weight
        terms = label_graph_loss_terms(scores @ weight, target, soft, stop_gradient=stop_gradient, **options)
        return terms.hard + 0.7 * terms.soft

    if stop_gradient:
        weight = weight.requires_grad_()
        expected = torch.autograd.grad(loss(scores, weight), weight)
        actual = torch.autograd.grad(label_graph_loss(scores @ weight, target, weight, ratio1=0.7, **options), weight)
        torch.testing.assert_close(actual, expected)
    else:
        assert torch.autograd.gradcheck(loss, (scores.requires_grad_(), weight.requires_grad_()))


@given(st.integers(0, 10**6), st.floats(0.1, 10))
def test_softmax_targets_are_a_distribution(seed, temperature):
    _, target, graph = case(seed)
    soft = soft_targets(target, graph, temperature)
    torch.testing.assert_close(soft.sum(1), torch.ones(len(soft), dtype=soft.dtype))
    assert (soft > 0).all()


def test_clip_keeps_targets_between_0_and_1():
    _, target, graph = case()
    plain, clipped = soft_targets(target, graph), soft_targets(target, graph, clip=True)
    assert plain.min() < 0 and plain.max() > 1
    torch.testing.assert_close(clipped, plain.clamp(0, 1))


def test_identity_graph_doubles_the_loss():
    logits, target, _ = case()
    expected = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean()
    identity = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(label_graph_loss(logits, target, identity, ratio1=0.0), expected)
    torch.testing.assert_close(label_graph_loss(logits, target, identity, ratio1=1.0), 2 * expected)
    torch.testing.assert_close(label_graph_loss(logits, target.long(), identity, ratio1=0.0), expected)


def test_ratio2_rewards_distance_from_the_identity():
    logits, target, graph = case()
    difference = label_graph_loss(logits, target, graph) - label_graph_loss(logits, target, graph, ratio2=0.1)
    torch.testing.assert_close(difference, 0.1 * (graph - torch.eye(5)).square().sum())


def test_encouraging_loss_of_two_classes():
    logits, target, graph = case()
    p = torch.where(target == 1, logits.sigmoid(), 1 - logits.sigmoid())
    end = 0.75
    tangent = torch.log(torch.tensor(1 - end)) - (p - end) / (1 - end)
    bonus = torch.where(p > end, tangent, torch.log1p(-p))
    expected = (bonus - p.log()).sum(1).mean()
    torch.testing.assert_close(label_graph_loss(logits, target, graph, ratio1=0.0, loss="encouraging"), expected)
    other = label_graph_loss(logits, target, graph, ratio1=0.0, loss="encouraging", log_end=0.5)
    assert not torch.isclose(other, expected)


def test_halted_focal_loss():
    logits, target, graph = case()
    p = torch.where(target == 1, logits.sigmoid(), 1 - logits.sigmoid())
    halted = -p.log() - 0.5 * torch.log(torch.tensor(2.0, dtype=p.dtype))
    expected = 0.5 * torch.where(p > 0.5, halted, -(1 - p) * p.log()).sum(1).mean()
    torch.testing.assert_close(label_graph_loss(logits, target, graph, ratio1=0.0, loss="halted-focal"), expected)


@pytest.mark.parametrize("loss", ["bce", "encouraging", "halted-focal"])
def test_soft_targets_weigh_the_loss_of_both_answers(loss):
    logits, _, graph = case()
    target = torch.full_like(logits, 0.3)
    options = {"ratio1": 0.0, "loss": loss}
    yes = label_graph_loss(logits, torch.ones_like(logits), graph, **options)
    no = label_graph_loss(logits, torch.zeros_like(logits), graph, **options)
    torch.testing.assert_close(label_graph_loss(logits, target, graph, **options), 0.3 * yes + 0.7 * no)


@pytest.mark.parametrize("form", [Tensor.bool, Tensor.byte, Tensor.int, Tensor.half, Tensor.numpy, Tensor.tolist])
def test_gold_labels_of_any_form(form):
    logits, target, graph = case()
    given = form(target)
    assert torch.equal(label_graph_loss(logits, given, graph), label_graph_loss(logits, target, graph))
    assert torch.equal(soft_targets(given, graph, 2.0), soft_targets(target, graph, 2.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LabelGraph(3, "logits"), "position must be one of"),
        (lambda: LabelGraph(3, noise=-1.0), "noise must not be negative, got -1.0"),
        *(
            (
                lambda value=value: soft_targets(torch.ones(1, 3), torch.eye(3), value),
                f"temperature must be at least 0 and finite, got {value}",
            )
            for value in (-2.0, math.nan, math.inf)
        ),
        (
            lambda: label_graph_loss(torch.ones(2, 3), torch.ones(2, 4), torch.eye(3)),
            r"target .* \(2, 3\), got \(2, 4\)",
        ),
        (lambda: label_graph_loss(torch.ones(2, 3), torch.ones(2), torch.eye(3)), r"target .* \(2, 3\), got \(2,\)"),
        (
            lambda: label_graph_loss(torch.ones(2, 3), torch.ones(2, 3), torch.eye(4)),
            r"graph must be \(3, 3\), got \(4",
        ),
        (lambda: soft_targets(torch.ones(2, 3), torch.ones(3, 4)), r"graph must be \(3, 3\), got \(3, 4\)"),
        (lambda: label_graph_loss(torch.ones(2, 3), torch.ones(2, 3), torch.eye(3), loss="mse"), "loss .* got 'mse'"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_code_of_the_readme_runs(capsys):
    (code,) = python_blocks("graph/label_graph/README.md")
    exec(code, {})
    assert "micro_f1" in capsys.readouterr().out


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32(loss):
    logits = torch.linspace(-12, 12, 256)[None].bfloat16().repeat(3, 1)
    target, graph = torch.ones(3, 256), torch.eye(256)
    got = label_graph_loss_terms(logits, target, graph.bfloat16(), loss=loss).hard
    torch.testing.assert_close(got, label_graph_loss_terms(logits.float(), target, graph, loss=loss).hard)

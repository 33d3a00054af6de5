from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.helpers import golden_names, load_golden
from vision_language.image_classification.attacks import ATTACKS, OBJECTIVES, Attack, vanishing_gradients


class Network(nn.Module):
    """The network of the fixtures: normalisation, a convolution, a linear layer."""

    def __init__(self, data) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.from_numpy(data[f"w{i}"]) for i in range(4))
        self.mean, self.std = float(data["mean"]), float(data["std"])

    def forward(self, x):
        kernel, bias, weight, offset = self.weights
        hidden = nn.functional.conv2d((x - self.mean) / self.std, kernel, bias, padding=1).relu()
        return hidden.flatten(1) @ weight.T + offset


@pytest.fixture(params=golden_names("encouraging_loss_images", "attack_"))
def case(request):
    data = load_golden("encouraging_loss_images", request.param)
    return data, Network(data), torch.from_numpy(data["x"]), torch.from_numpy(data["y"])


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgdl2"])
def test_attacks_are_those_of_the_fixture(case, name, objective):
    """In float64 both objectives point the same way: their gradients differ by a positive factor."""
    data, network, images, labels = case
    steps, alpha = int(data["steps"]), float(data["alpha"])
    attack = {
        "fgsm": Attack("fgsm", objective),
        "pgd": Attack("pgd", objective, steps, alpha, random_start=False),
        "pgdl2": Attack("pgd-l2", objective, steps, 0.2),
    }[name]
    for index, epsilon in enumerate(data["eps"].tolist()):
        attacked = attack(network, images, labels, 3 * epsilon if name == "pgdl2" else epsilon)
        expected = torch.from_numpy(data[f"{name}_{index}"])
        tolerance = 1e-6 if name == "pgdl2" else 1e-12
        torch.testing.assert_close(attacked, expected, rtol=0, atol=tolerance)
        if name != "pgdl2":
            assert network(attacked).argmax(1).tolist() == data[f"{name}_{index}_pred"].tolist()


def test_a_start_is_taken(case, monkeypatch):
    data, network, images, labels = case
    monkeypatch.setattr(Attack, "_start", lambda *_: torch.from_numpy(data["start"]))
    attack = Attack("pgd", "cross-entropy", int(data["steps"]), float(data["alpha"]))
    for index, epsilon in enumerate(data["eps"].tolist()):
        attacked = attack(network, images, labels, epsilon)
        torch.testing.assert_close(attacked, torch.from_numpy(data[f"pgd_start_{index}"]), rtol=0, atol=1e-12)


def network_of_margin(margin: float) -> nn.Module:
    linear = nn.Linear(4, 2, bias=False)
    linear.weight.data = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]]) * margin / 2
    return nn.Sequential(nn.Flatten(), linear)


def test_log_odds_find_what_the_cross_entropy_of_a_large_margin_hides():
    images, labels = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.long)
    sure, unsure = network_of_margin(200.0), network_of_margin(2.0)
    assert vanishing_gradients(sure, images, labels) == {"zero_gradient": 1.0, "probability_is_one": 1.0}
    assert vanishing_gradients(unsure, images, labels) == {"zero_gradient": 0.0, "probability_is_one": 0.0}
    assert torch.equal(Attack("fgsm", "cross-entropy")(sure, images, labels, 0.25), images)
    assert torch.equal(Attack("fgsm", "log-odds")(sure, images, labels, 0.25), images - 0.25)


@given(name=st.sampled_from(list(ATTACKS)), objective=st.sampled_from(list(OBJECTIVES)), epsilon=st.floats(0, 1))
def test_attacked_images_are_pixels_within_the_radius(name, objective, epsilon):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    images, labels = torch.rand(5, 2, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    options = {} if name == "fgsm" else {"steps": 3, "step_size": 0.5}
    attacked = Attack(name, objective, **options)(network, images, labels, epsilon)
    assert attacked.min() >= 0 and attacked.max() <= 1
    distance = (attacked - images).flatten(1)
    size = distance.norm(dim=1) if name == "pgd-l2" else distance.abs().amax(1)
    assert (size <= epsilon + 1e-6).all()


def test_the_start_of_an_image_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images, labels = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    attack = Attack("pgd", steps=1, step_size=1e-3)
    whole = attack(network, images, labels, 0.3)
    parts = [
        attack(network, images[i : i + 2], labels[i : i + 2], 0.3, range(i, min(i + 2, 5))) for i in range(0, 5, 2)
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.equal(whole, Attack("pgd", steps=1, step_size=1e-3, seed=1)(network, images, labels, 0.3))


def test_the_model_is_as_before():
    network = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(4, 2), nn.BatchNorm1d(2))
    network[1].eval()
    network[2].bias.requires_grad_(False)
    statistics = network[3].running_mean.clone()
    images, labels = torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.long)
    Attack()(network, images, labels, 0.1)
    vanishing_gradients(network, images, labels)
    assert [module.training for module in network] == [True, False, True, True]
    assert network[2].weight.requires_grad and not network[2].bias.requires_grad
    assert network[2].weight.grad is None
    assert torch.equal(network[3].running_mean, statistics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "fgm"}, "name must be one of fgsm, pgd, pgd-l2, got 'fgm'"),
        ({"objective": "ce"}, "objective must be one of log-odds, cross-entropy, got 'ce'"),
        ({"steps": 3}, "steps is an option of pgd and pgd-l2, got 3 with fgsm"),
        ({"step_size": 0.1}, "step_size is an option of pgd and pgd-l2"),
        ({"random_start": True}, "random_start is an option of pgd and pgd-l2"),
        ({"name": "pgd-l2", "random_start": True}, "random_start is an option of pgd, got True with pgd-l2"),
        ({"name": "pgd", "steps": 0}, "steps must be at least 1, got 0"),
        ({"name": "pgd", "step_size": 0.0}, "step_size must be above 0, got 0.0"),
    ],
)
def test_refused_attacks(options, message):
    with pytest.raises(ValueError, match=message):
        Attack(**options)


@pytest.mark.parametrize("epsilon", [-0.1, 1.5, 8, float("nan")])
def test_a_radius_beyond_the_pixels_is_refused(epsilon):
    network, labels = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"epsilon must be in \[0, 1\], in pixels from 0 to 1"):
        Attack()(network, torch.rand(1, 1, 2, 2), labels, epsilon)


@pytest.mark.parametrize("epsilon", [-0.1, float("inf"), float("nan")])
def test_no_euclidean_radius(epsilon):
    network, labels = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="epsilon must be at least 0 and finite"):
        Attack("pgd-l2")(network, torch.rand(1, 1, 2, 2), labels, epsilon)


def test_a_euclidean_ball_may_be_larger_than_the_cube_of_pixels():
    """The published radii go up to 100: nothing is projected, and 40 steps of 0.2 go from corner to corner."""
    attack, images, labels = Attack("pgd-l2"), torch.ones(2, 1, 2, 2), torch.zeros(2, dtype=torch.long)
    attacked = attack(network_of_margin(2.0), images, labels, 100.0)
    assert torch.equal(attacked, torch.zeros_like(images))
    assert attack.distance(images, attacked).tolist() == [2, 2]
    assert Attack("pgd").distance(images, attacked).tolist() == [1, 1]


def test_normalised_images_are_refused():
    network, labels = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="put the normalisation inside the model"):
        Attack()(network, torch.full((1, 1, 2, 2), -0.4), labels, 0.1)

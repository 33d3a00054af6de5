"""Amalgamation of hidden states: fixtures with gradients, layer choice, and padding that must not count."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import golden_names, load_golden
from vision_language.muka.feature_amalgamation import (
    CommonFeatureLearning,
    LayerwiseAmalgamation,
    aligned_layers,
    masked_mse,
    maximum_mean_discrepancy,
)

EXACT = dict(rtol=1e-9, atol=1e-9)
SEEDS = st.integers(0, 10**6)
METHODS = [LayerwiseAmalgamation, CommonFeatureLearning]
RENAMED = {
    "dfa.t_encoder": "teacher_encoder",
    "dfa.t_decoder": "teacher_decoder",
    "dfa.s_encoder": "student_encoder",
    "cfl.align_s.0": "student_adapter",
    "cfl.extractor": "extractor",
    "cfl.align_t.0.0": "teacher_adapters.0",
    "cfl.align_t.1.0": "teacher_adapters.1",
    "cfl.dec_t": "decoders",
}


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blocks(method, seed=0, student=8, teachers=(8, 12), num_layers=1):
    torch.manual_seed(seed)
    return method(student, teachers, num_layers).double()


@pytest.mark.parametrize(
    ("method", "prefix", "terms"),
    [(LayerwiseAmalgamation, "dfa", ("dfa_amal", "dfa_rec")), (CommonFeatureLearning, "cfl", ("cfl_mmd", "cfl_mse"))],
)
@pytest.mark.parametrize("name", golden_names("muka", "feature_case"))
def test_fixture_terms_and_gradient(name, method, prefix, terms):
    data = {key: torch.as_tensor(value) for key, value in load_golden("muka", name).items()}
    teachers = [data[key] for key in sorted(data) if key.startswith("ft_")]
    module = blocks(method, student=data["fs"].size(-1), teachers=[states.size(-1) for states in teachers])
    state = {}
    for key, value in data.items():
        if key.startswith(f"{prefix}."):
            old = next(old for old in RENAMED if key.startswith(f"{old}."))
            state[f"blocks.0.{RENAMED[old]}{key.removeprefix(old)}"] = value
    module.load_state_dict(state)
    student = data["fs"].clone().requires_grad_()
    for mask in (None, torch.ones(student.shape[:2], dtype=torch.long)):
        student.grad = None
        values = module([student], [[states] for states in teachers], mask)
        sum(values).backward()
        for value, key in zip(values, terms, strict=True):
            torch.testing.assert_close(value, data[key], **EXACT)
        torch.testing.assert_close(student.grad, data[f"{prefix}_grad_fs"], **EXACT)


@pytest.mark.parametrize(
    ("depths", "num_layers", "expected"),
    [
        ([3, 3], None, [[2, 1, 0], [2, 1, 0]]),
        ([3, 6, 7], None, [[2, 1, 0], [5, 3, 1], [6, 4, 2]]),
        ([3, 6], 1, [[2], [5]]),
        ([6, 3], 2, [[5, 3], [2, 1]]),
        ([12, 6, 3], None, [[11, 7, 3], [5, 3, 1], [2, 1, 0]]),
    ],
)
def test_layers_are_strided_from_the_top(depths, num_layers, expected):
    assert aligned_layers(depths, num_layers) == expected


@pytest.mark.parametrize("num_layers", [0, 4])
def test_more_layers_than_there_are_is_refused(num_layers):
    with pytest.raises(ValueError, match=f"num_layers must be from 1 to 3, .* got {num_layers}"):
        aligned_layers([6, 3], num_layers)
    with pytest.raises(ValueError, match="num_layers must be"):
        module = blocks(LayerwiseAmalgamation, num_layers=num_layers)
        module([draw(0, 2, 3, 8)] * 6, [[draw(1, 2, 3, 8)] * 3, [draw(2, 2, 3, 12)] * 3], None)


@pytest.mark.parametrize("method", METHODS)
def test_layers_add_up(method):
    module = blocks(method, num_layers=2)
    student = [draw(layer, 3, 4, 8) for layer in range(2)]
    teachers = [[draw(10 + layer, 3, 4, 8) for layer in range(2)], [draw(20 + layer, 3, 4, 12) for layer in range(4)]]
    terms = module(student, teachers, None)
    top = module.blocks[0](student[1], [teachers[0][1], teachers[1][3]], None)
    below = module.blocks[1](student[0], [teachers[0][0], teachers[1][1]], None)
    for value, first, second in zip(terms, top, below, strict=True):
        torch.testing.assert_close(value, first + second)


@pytest.mark.parametrize("method", METHODS)
@given(SEEDS, st.integers(1, 3), st.integers(1, 4))
def test_padding_does_not_count(method, seed, batch, extra):
    module = blocks(method, seed)
    states = [draw(seed, batch, 5, 8).requires_grad_(), draw(seed + 1, batch, 5, 8), draw(seed + 2, batch, 5, 12)]
    lengths = torch.randint(1, 6, (batch, 1), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(5) < lengths
    # What stands in the padding, and how much of it there is, is of no consequence.
    padded = [
        F.pad(torch.where(mask[..., None], value, 100.0 * draw(seed + 5, *value.shape)), (0, 0, 0, extra), value=3.0)
        for value in states
    ]
    terms = module([states[0]], [[value] for value in states[1:]], mask)
    other = module([padded[0]], [[value] for value in padded[1:]], F.pad(mask, (0, extra)).long())
    for value, same in zip(terms, other, strict=True):
        torch.testing.assert_close(value, same)
    gradients = [torch.autograd.grad(sum(losses), states[0])[0] for losses in (terms, other)]
    torch.testing.assert_close(*gradients)
    assert (gradients[0][~mask] == 0).all()
    everything = module([states[0]], [[value] for value in states[1:]], None)
    if not mask.all():
        assert not torch.isclose(everything.reconstruction, terms.reconstruction)


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_and_the_student_learn_but_no_teacher(method):
    module = blocks(method)
    student, teachers = draw(0, 4, 3, 8).requires_grad_(), [draw(1, 4, 3, 8), draw(2, 4, 3, 12)]
    leaves = [states.requires_grad_() for states in teachers]
    sum(module([student], [[states] for states in leaves], None)).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())
    assert student.grad.abs().sum() > 0 and all(states.grad is None for states in leaves)


def test_alignment_of_dfa_does_not_move_the_code_of_the_teachers():
    module = blocks(LayerwiseAmalgamation)
    module([draw(0, 4, 3, 8)], [[draw(1, 4, 3, 8)], [draw(2, 4, 3, 12)]], None).alignment.backward()
    assert module.blocks[0].teacher_encoder.weight.grad is None


@pytest.mark.parametrize("method", METHODS)
def test_states_of_different_tokenizers_are_refused(method):
    with pytest.raises(ValueError, match="one tokenizer for all"):
        blocks(method)([draw(0, 2, 3, 8)], [[draw(1, 2, 4, 8)], [draw(2, 2, 3, 12)]], None)


@given(SEEDS, st.integers(1, 6))
def test_mmd_is_a_symmetric_distance_of_samples(seed, batch):
    x, y = draw(seed, batch, 7), draw(seed + 1, batch, 7)
    value = maximum_mean_discrepancy(x, y)
    assert value > 0
    torch.testing.assert_close(maximum_mean_discrepancy(y, x), value)
    torch.testing.assert_close(maximum_mean_discrepancy(5 * x.flip(0), y), value)
    assert maximum_mean_discrepancy(x, x) < 1e-12


def test_mmd_agrees_with_its_definition():
    x, y = (F.normalize(draw(seed, 4, 5), dim=-1) for seed in (0, 1))
    both = torch.cat([x, y])
    distance = torch.cdist(both, both).square()
    variance = distance.mean()
    kernel = sum((-distance / (2 * c * variance)).exp() for c in (0.25, 0.5, 1, 2, 4))
    sign = torch.tensor([1.0] * 4 + [-1.0] * 4, dtype=torch.float64)
    torch.testing.assert_close(maximum_mean_discrepancy(x, y), sign @ kernel @ sign / 16)


def test_mmd_is_finite_for_zeros_for_equal_examples_and_under_autocast():
    for x, y in ((torch.zeros(3, 4), torch.ones(3, 4)), (torch.ones(3, 4), torch.ones(3, 4))):
        x.requires_grad_()
        value = maximum_mean_discrepancy(x, y)
        value.backward()
        assert value.isfinite() and x.grad.isfinite().all()
    x, y = draw(0, 4, 5).bfloat16(), draw(1, 4, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = maximum_mean_discrepancy(x, y)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, maximum_mean_discrepancy(x.float(), y.float()))


def test_masked_mse_is_the_mean_over_real_positions():
    x, y = draw(0, 2, 3, 4), draw(1, 2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    torch.testing.assert_close(masked_mse(x, y, mask), F.mse_loss(x[mask.bool()], y[mask.bool()]))
    assert masked_mse(x, y, torch.zeros(2, 3)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [True, False])
def test_masked_mse_of_half_precision_counts_beyond_its_range(dtype, masked):
    states, target = draw(0, 2, 40_000, 1).to(dtype), draw(1, 2, 40_000, 1).to(dtype)
    mask = torch.ones(2, 40_000, dtype=torch.long) if masked else None
    got = masked_mse(states, target, mask)
    torch.testing.assert_close(got, masked_mse(states.double(), target.double(), mask).float())


def test_a_student_too_narrow_for_common_features_is_refused():
    assert blocks(CommonFeatureLearning, student=4).blocks[0].student_adapter.out_features == 1
    with pytest.raises(SystemExit, match=r"student_size must be at least 4, .*, got 3"):
        blocks(CommonFeatureLearning, student=3)

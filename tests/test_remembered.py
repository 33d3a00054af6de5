"""A result that is kept is that of the arguments of the call, whatever happened to them since the last one."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch

from fairseq_ext.remembered import Remembered

CALLS = []


def scaled(x, factor=2.0):
    CALLS.append(factor)
    return x * factor


@pytest.fixture
def remembered():
    CALLS.clear()
    return Remembered(scaled)


def test_equal_arguments_are_computed_once(remembered):
    x = torch.rand(3)
    first = remembered(x)
    assert remembered(x) is first and remembered(x.clone()) is first and len(CALLS) == 1


def by_another_alias(x):
    x.detach()[0] = 7


CHANGES = {
    "in place": lambda x: x.zero_(),
    "through .data": lambda x: x.data.zero_(),
    "through numpy": lambda x: np.copyto(x.numpy(), 5),
    "through a view": by_another_alias,
    "by another storage": lambda x: x.set_(torch.ones(3)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_content_is_seen(remembered, change):
    x = torch.rand(3)
    before = remembered(x).clone()
    CHANGES[change](x)
    assert torch.equal(remembered(x), 2 * x) and not torch.equal(before, 2 * x)


def test_other_types_shapes_values_and_numbers_of_arguments_are_other_arguments(remembered):
    x = torch.ones(4)
    arguments = [(x,), (x.double(),), (x.view(2, 2),), (x.to("meta"),), (x, 3.0), (x, 3), (x, 3.0), (x,)]
    for given in arguments:
        result = remembered(*given)
        assert (result.dtype, result.shape, result.device) == (given[0].dtype, given[0].shape, given[0].device)
        if result.device.type == "cpu":
            assert torch.equal(result, scaled(*given))
    assert len(CALLS) == 2 * len(arguments) - 1


def test_what_needs_a_gradient_is_not_kept(remembered):
    x = torch.rand(3, requires_grad=True)
    for _ in range(2):
        x.grad = None
        remembered(x).sum().backward()
        assert x.grad.tolist() == [2] * 3


def test_a_result_of_inference_mode_can_be_trained_on(remembered):
    x, weight = torch.rand(3), torch.rand(3, requires_grad=True)
    with torch.inference_mode():
        remembered(x)
    (remembered(x) * weight).sum().backward()
    assert torch.equal(weight.grad, 2 * x) and len(CALLS) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_start_empty(remembered, copied):
    remembered(torch.zeros(100_000))
    buffer = io.BytesIO()
    pickle.dump(remembered, buffer)
    assert buffer.tell() < 1000
    assert torch.equal(copied(remembered)(torch.ones(2)), torch.full((2,), 2.0))


def test_an_error_leaves_nothing_behind():
    def fails(x):
        if x[0] == 0:
            raise ValueError("zero")
        return x

    remembered, x = Remembered(fails), torch.ones(2)
    assert remembered(x) is not None
    for _ in range(2):
        with pytest.raises(ValueError, match="zero"):
            remembered(torch.zeros(2))
    assert torch.equal(remembered(x), x)

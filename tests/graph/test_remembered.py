"""A result that is kept is that of the arguments of the call, whatever happened to them since the last one."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import threading

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from graph.remembered import Remembered

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


def test_threads_get_the_results_of_their_own_arguments():
    """One thread's call comes between each two lines of the other's."""
    function = Remembered(scaled)
    x, other = torch.ones(2), torch.zeros(2)

    def interrupt(frame, event, argument):
        if frame.f_code.co_filename != sys.modules[Remembered.__module__].__file__:
            return None
        if event == "line":
            thread = threading.Thread(target=function, args=(other,))
            thread.start()
            thread.join()
        return interrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        results = [function(x) for _ in range(3)]
    finally:
        sys.settrace(before)
    assert [result.tolist() for result in results] == [[2, 2]] * 3


@pytest.mark.parametrize("seen", [False, True])
def test_tangents_pass_and_nothing_of_theirs_is_kept(remembered, seen):
    x, tangent = torch.rand(3), torch.rand(3)
    if seen:
        remembered(x)
    with forward_ad.dual_level():
        out = forward_ad.unpack_dual(remembered(forward_ad.make_dual(x, tangent)))
        assert torch.equal(out.tangent, 2 * tangent)
    assert torch.equal(remembered(x), 2 * x) and forward_ad.unpack_dual(remembered(x)).tangent is None


@pytest.mark.parametrize("seen", [False, True])
def test_transforms_pass_and_nothing_of_theirs_is_kept(remembered, seen):
    x, other = torch.rand(4, 3), torch.rand(3)
    if seen:
        remembered(other)
    assert torch.equal(torch.func.vmap(remembered)(x), 2 * x)
    assert torch.equal(torch.func.grad(lambda y: remembered(y).sum())(x), torch.full((4, 3), 2.0))
    # What is not transformed is as without them.
    grad = torch.func.grad(lambda y: (remembered(other) * y).sum())
    assert torch.equal(grad(torch.ones(3)), 2 * other)
    calls = len(CALLS)
    result = remembered(other)
    assert result.tolist() == (2 * other).tolist() and len(CALLS) == calls


def test_autocast_is_an_argument():
    remembered, x = Remembered(torch.mm), torch.rand(2, 2)
    types = []
    for enabled, dtype in [(False, None), (True, torch.bfloat16), (True, torch.float16), (False, None)]:
        with torch.autocast("cpu", dtype, enabled):
            types.append(remembered(x, x).dtype)
            assert torch.equal(remembered(x, x), torch.mm(x, x))
    assert types == [torch.float32, torch.bfloat16, torch.float16, torch.float32]

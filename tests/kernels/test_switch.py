"""When a method may hand over to a kernel."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fairseq_ext import kernels


def on_card(dtype=torch.float32, index=0):
    """What :func:`kernels.usable` reads of a CUDA tensor."""
    return SimpleNamespace(is_cuda=True, device=torch.device("cuda", index), dtype=dtype)


@pytest.fixture(autouse=True)
def torch_path():
    """The switch is as users find it."""


@pytest.fixture(autouse=True)
def new_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    kernels._lacks.cache_clear()
    yield
    kernels._lacks.cache_clear()


@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_cuda_tensors_go_to_kernels(dtype):
    assert kernels.usable(on_card(dtype), on_card(dtype))


def test_a_cpu_tensor_stays_on_the_torch_path():
    assert not kernels.usable(torch.zeros(1))


@pytest.mark.parametrize("other", [on_card(torch.float64), on_card(index=1), torch.zeros(1)])
def test_every_tensor_must_fit(other):
    assert not kernels.usable(on_card(), other)


def test_an_old_card_stays_on_the_torch_path(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not kernels.usable(on_card())


def test_without_triton(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not kernels.usable(on_card())


@pytest.mark.parametrize(
    ("switch", "capability", "installed", "reason"),
    [
        ("1", (8, 0), True, ""),
        ("0", (9, 0), True, "FAIRSEQ_EXT_KERNELS=0"),
        ("1", (7, 5), True, "capability 7.5, kernels need 8.0"),
        ("1", (9, 0), False, "Triton is not installed: pip install 'fairseq-ext[triton]'"),
    ],
)
def test_the_reason_is_that_of_the_decision(monkeypatch, switch, capability, installed, reason):
    monkeypatch.setenv(kernels.SWITCH, switch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: installed or None)
    assert kernels.why_unused(on_card().device) == reason
    assert kernels.usable(on_card()) == (not reason)
    assert kernels.why_unused(torch.device("cpu"))


def test_disabled_inside_and_nested():
    with kernels.disabled():
        with kernels.disabled():
            assert not kernels.usable(on_card())
        assert not kernels.usable(on_card())
    assert kernels.usable(on_card())


def test_the_switch_in_the_environment(monkeypatch):
    monkeypatch.setenv(kernels.SWITCH, "0")
    assert not kernels.usable(on_card())
    monkeypatch.setenv(kernels.SWITCH, "off")
    with pytest.raises(ValueError, match="FAIRSEQ_EXT_KERNELS must be 0 or 1, got 'off'"):
        kernels.usable(on_card())


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
def test_transforms_stay_on_the_torch_path():
    seen = []
    torch.func.vmap(lambda x: seen.append(kernels.usable(on_card())) or x)(torch.zeros(2))
    torch.jit.trace(lambda x: seen.append(kernels.usable(on_card())) or x + 1, torch.zeros(2), check_trace=False)
    assert seen == [False, False]


def test_a_compiler_is_not_led_to_the_environment(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setenv(kernels.SWITCH, "off")  # refused where it is read
    assert not kernels.usable(on_card())

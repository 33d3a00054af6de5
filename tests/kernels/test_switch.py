"""When a method may hand over to a kernel."""

from __future__ import annotations

import importlib
import re
import sysconfig
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fairseq_ext import kernels


class OnCard(SimpleNamespace):
    __torch_dispatch__ = torch.Tensor.__torch_dispatch__


def on_card(dtype=torch.float32, index=0, kind=OnCard):
    """What :func:`kernels.usable` reads of a CUDA tensor."""
    return kind(is_cuda=True, device=torch.device("cuda", index), dtype=dtype)


@pytest.fixture(autouse=True)
def torch_path():
    """The switch is as users find it."""


@pytest.fixture(autouse=True)
def new_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    monkeypatch.setattr(kernels, "cannot_compile", lambda: "")
    for cached in (kernels._lacks, kernels._compiles):
        cached.cache_clear()
    yield
    for cached in (kernels._lacks, kernels._compiles):
        cached.cache_clear()


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


CANNOT_COMPILE = kernels.cannot_compile.__wrapped__


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """One that can build kernels, as far as is asked: a compiler, and the header of Python."""
    pytest.importorskip("triton")
    (tmp_path / "gcc").touch(mode=0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CPATH", "C_INCLUDE_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    monkeypatch.setattr(kernels, "cannot_compile", CANNOT_COMPILE)
    return tmp_path


def test_a_machine_that_can_build_kernels(machine, monkeypatch, recwarn):
    assert kernels.usable(on_card()) and kernels.why_unused(on_card().device) == "" and not recwarn
    (machine / "gcc").rename(machine / "mycc")
    monkeypatch.setenv("CC", "mycc")
    assert CANNOT_COMPILE() == ""
    (machine / "include").mkdir()
    (machine / "Python.h").rename(machine / "include" / "Python.h")
    assert CANNOT_COMPILE() == f"Triton needs {machine}/Python.h: install python3-dev"
    monkeypatch.setenv("C_INCLUDE_PATH", f":{machine / 'include'}")
    assert CANNOT_COMPILE() == ""


def torn(name):
    raise ImportError(f"libtriton.so of {name}: undefined symbol")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda machine, patch: (machine / "gcc").unlink(), "Triton needs a C compiler: install gcc"),
        (lambda machine, patch: patch.setenv("CC", "no-such-cc"), "CC=no-such-cc is no C compiler for Triton"),
        (lambda machine, patch: (machine / "Python.h").unlink(), "Triton needs .*/Python.h: install python3-dev"),
        (lambda machine, patch: patch.setattr(importlib, "import_module", torn), "Triton cannot be imported"),
    ],
)
def test_a_machine_that_cannot_build_kernels_says_so_once(machine, monkeypatch, recwarn, broken, reason):
    broken(machine, monkeypatch)
    assert re.match(reason, kernels.why_unused(on_card().device)) and not recwarn
    with pytest.warns(RuntimeWarning, match=f"torch path: {reason}.*, or set FAIRSEQ_EXT_KERNELS=0"):
        assert not kernels.usable(on_card())
    assert not kernels.usable(on_card()) and not recwarn


def test_tensors_without_memory_stay_on_the_torch_path(monkeypatch):
    """``DTensor``, ``FakeTensor`` and all with operations of their own; parameters and plain subclasses do not."""

    class Wrapper(OnCard):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            raise NotImplementedError

    wrapped = on_card(kind=Wrapper)
    assert not kernels.usable(wrapped) and not kernels.usable(on_card(), wrapped)
    with FakeTensorMode():
        fake = torch.empty(2, device="cuda")
    assert fake.is_cuda and not kernels.usable(fake)
    for kind in (torch.nn.Parameter, type("Named", (torch.Tensor,), {})):
        monkeypatch.setattr(OnCard, "__torch_dispatch__", kind.__torch_dispatch__)
        assert kernels.usable(on_card())


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

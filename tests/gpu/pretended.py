"""A pretended GPU: tensors that say they are on one, keep their numbers on the CPU, and refuse those of the CPU.

``python -m tests.gpu.pretended`` sends every block, loss and model through it, forward and backward, and prints a line
for each that leaves a tensor behind. A process of its own, since torch keeps the device for good.
"""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from benchmarks.__main__ import NAMES, not_on
from benchmarks.timing import inputs_on
from fairseq_ext import kernels
from tests.blocks import blocks
from tests.gpu.test_models import CASES, inputs
from tests.models.test_combinations import PREVIOUS, build
from tests.models.tiny import decode_by_step, translation_model
from tests.test_blocks import weighed

NAME = "pretended"
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
# CUDA takes indices that lie on the CPU.
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


SKIPPED = {
    "entmax-bisect": "entmax's own, which asks the device for memory",
    "benchmark iais": "accelerate knows no such device",
    "benchmark label_graph": "torch's LSTM has a kernel of its own for every device but the CPU",
    "benchmark muka": "transformers asks the device for memory",
    "benchmark muse": "fairseq's search does, too",
}


class Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


class Pretended(Tensor):
    """A tensor on the device; ``inner`` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretended:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """``func`` of tensors on one device, computed on the CPU; single numbers may come from the other, as with CUDA."""
    flat, spec = tree_flatten((args, kwargs))
    ours = [x for x in flat if isinstance(x, Pretended)]
    strangers = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, Pretended) and x.dim()]
    if ours and strangers and func not in (*COPIES, *INDEXED):
        raise RuntimeError(f"{func} takes tensors of two devices, of shapes {[tuple(x.shape) for x in strangers]} here")
    place = kwargs.get("device")
    there = torch.device(place).type == NAME if place is not None else bool(ours)
    args, kwargs = tree_unflatten([x.inner if isinstance(x, Pretended) else x for x in flat], spec)
    if place is not None:
        kwargs["device"] = "cpu"
    known = {id(x.inner): x for x in ours}

    def sent(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return known[id(value)] if id(value) in known else Pretended(value) if there else value

    return tree_map(sent, func(*args, **kwargs))


class OnBoth(TorchDispatchMode):
    """Also for what has no tensor of the device among its arguments."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def send(values: Any) -> Any:
    return tree_map(lambda x: Pretended(x.detach().clone()) if isinstance(x, Tensor) else x, values)


def send_module(module: nn.Module) -> nn.Module:
    """As ``module.to(NAME)``: tensors that are no parameters and no buffers stay behind."""
    shared: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, value in list(part._parameters.items()):
            if value is not None:
                part._parameters[name] = shared.setdefault(id(value), nn.Parameter(send(value)))
        for name, value in list(part._buffers.items()):
            part._buffers[name] = send(value)
    return module


def block_runs() -> Iterator[tuple[str, Callable[[], None]]]:
    for block in blocks():

        def run(block: Any = block) -> None:
            if isinstance(block.function, nn.Module):
                send_module(block.function)
            leaves = tree_map(
                lambda x: x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x,
                send(block.inputs),
            )
            outputs = [x for x in tree_leaves(block.function(*leaves, **send(block.options))) if isinstance(x, Tensor)]
            assert all(isinstance(x, Pretended) for x in outputs), "an output lies on the CPU"
            weighed(outputs).backward()

        yield str(block), run


def model_runs() -> Iterator[tuple[str, Callable[[], None]]]:
    for builder, options, name in CASES:

        def run(builder: Any = builder, options: Any = options) -> None:
            model = send_module(build(builder, options))
            logits = model.train()(*send(inputs(builder)))[0]
            logits.float().log_softmax(-1).sum().backward()
            with torch.no_grad():
                model.eval()
                encoded = model.encoder(*send(inputs(builder)[:2])) if builder is translation_model else None
                decode_by_step(model, send(PREVIOUS), encoded)

        yield f"{builder.__name__}-{name}", run


def benchmark_runs() -> Iterator[tuple[str, Callable[[], None]]]:
    for name in NAMES:

        def run(name: str = name) -> None:
            module = importlib.import_module(f"benchmarks.{name}")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(kernels, "_lacks", lambda device: "")
                patch.setattr(kernels, "cannot_compile", lambda: "")
                if not_on(module, torch.device("cuda")):
                    return
                with inputs_on(torch.device(NAME, 0)):
                    generator = torch.Generator
                    patch.setattr(torch, "Generator", lambda device: generator())  # the device draws no numbers
                    list(module.run(True))

        yield f"benchmark {name}", run


def notices() -> bool:
    """Whether one tensor that was left behind is refused."""
    try:
        with OnBoth():
            send(torch.ones(2)) + torch.ones(2)
    except RuntimeError:
        return True
    return False


def main() -> int:
    warnings.filterwarnings("ignore")
    logging.disable()
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    torch.__future__.set_swap_module_params_on_conversion(True)  # another dtype is another tensor
    if not notices():
        print("nothing is noticed")
        return 1
    failures = 0
    for name, run in (*block_runs(), *model_runs(), *benchmark_runs()):
        if any(word in name for word in SKIPPED):
            continue
        try:
            with OnBoth():
                run()
        except Exception as error:
            failures += 1
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:300]}")
    print(f"{failures} failures")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())

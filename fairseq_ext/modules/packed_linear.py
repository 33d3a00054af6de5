r"""Linear layers whose weights are packed once for the products of a CPU.

.. math:: y = x W^\top + b

A framework reads a weight row by row, or arranges it anew for every product. In decoding, where a few rows meet
matrices of megabytes, this takes most of the time. Here the weight is arranged once, and may be stored in fewer bits:

``float32``
    the same numbers in oneDNN's blocks: results differ by rounding alone.
``bfloat16``
    :math:`W`, :math:`x` and :math:`y` have 8 significant bits, sums are in float32.
``int8``
    :math:`W_{ij} \approx s_i \hat W_{ij}` with a scale for every output and :math:`x_{rj} \approx t_r \hat x_{rj}` with
    one for every row, both integers up to 127: the products are exact in int32, :math:`y_{ri} = t_r s_i (\hat x_r
    \cdot \hat W_i) + b_i`. As each row has a scale of its own, no result depends on what else is in the batch, and a
    row that is not finite stays visible. (LLM.int8(), Dettmers et al., arXiv 2208.07339, calls it vector-wise.)

float32 and bfloat16 are the operators that torch's compiler emits for frozen CPU graphs; for int8 see
:mod:`~fairseq_ext.modules.int8_product`.
"""

from __future__ import annotations

import functools
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from fairseq_ext.modules.int8_product import int8_product, levels

__all__ = ["INFERENCE_DTYPES", "PackedLinear", "check_packable", "is_supported", "pack_linears_", "processor_note"]

# oneDNN chooses its blocks for this number of rows, a beam. With blocks for one row, five take up to twice the time.
_ROWS = 5


class PackedLinear(nn.Module):
    """A :class:`torch.nn.Linear` for inference on a CPU; :func:`pack_linears_` makes it.

    It has no gradients and no state dict: save a model before it is packed. Copying and pickling work.

    Args:
        linear: float32, on the CPU; stays as it is.

    Shape:
        - input: :math:`(*, K)`, float32
        - output: :math:`(*, N)`, float32
    """

    dtype: str

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else _frozen(self.convert(linear.bias.detach().clone()))
        self.packed = _frozen(self.pack(self.quantize(linear.weight.detach())))

    def convert(self, numbers: Tensor) -> Tensor:
        """The bias or the input in the form that the product takes."""
        return numbers

    def quantize(self, weight: Tensor) -> Tensor:
        """The numbers (N, K) that are stored for ``weight``."""
        return self.convert(weight)

    def pack(self, weight: Tensor) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)

    def unpack(self) -> Tensor:
        """The stored numbers (N, K) in their usual order."""
        return self.packed.to_dense()

    def product(self, input: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(self.convert(input), self.packed, self.bias, "none", [], "")

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != torch.float32:
            raise TypeError(f"input must be float32 for packed weights, got {input.dtype}")
        if input.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("packed weights give no gradients: call the model under torch.no_grad()")
        if not input.numel():  # oneDNN loses the leading sizes
            return input.new_empty(*input.shape[:-1], self.out_features)
        return self.product(input)

    def train(self, mode: bool = True) -> Self:
        if mode:
            raise RuntimeError("packed weights have no gradients: train the model they were packed from")
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        probe = fn(torch.zeros(1))
        if probe.device.type != "cpu" or probe.dtype != torch.float32:
            raise RuntimeError(
                f"packed weights stay on the CPU as they are, cannot make them {probe.dtype} on {probe.device}"
            )
        return self

    def __prepare_scriptable__(self) -> NoReturn:  # called by torch.jit.script for every module, before it compiles
        raise RuntimeError("packed weights have no torch.jit.script form: script the model before it is packed")

    def _save_to_state_dict(self, *args: Any) -> NoReturn:
        raise RuntimeError("packed weights have no state dict: take it before the model is packed")

    def _load_from_state_dict(self, *args: Any) -> NoReturn:
        raise RuntimeError("packed weights have no state dict: load it before the model is packed")

    def __getstate__(self) -> dict[str, Any]:
        # oneDNN's tensors can be neither copied nor pickled
        return {**self.__dict__, "_parameters": {**self._parameters, "packed": None}, "unpacked": self.unpack()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        weight = state.pop("unpacked")
        super().__setstate__(state)
        self.packed = _frozen(self.pack(weight))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, dtype={self.dtype}"

    @classmethod
    def note(cls) -> str:
        """The features that this processor lacks to be fast or exact; empty where it has all."""
        return ""


class PackedFloat32Linear(PackedLinear):
    """Packed float32: see :class:`PackedLinear`."""

    dtype = "float32"


class PackedBFloat16Linear(PackedLinear):
    """Packed bfloat16: see :class:`PackedLinear`."""

    dtype = "bfloat16"

    def convert(self, numbers: Tensor) -> Tensor:
        return numbers.bfloat16()

    def product(self, input: Tensor) -> Tensor:
        return super().product(input).float()

    @classmethod
    def note(cls) -> str:
        has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "" if has else "no AVX-512 BF16 and no AMX: products are slower than in float32"


class PackedInt8Linear(PackedLinear):
    """Packed int8, with a scale for each output and each row of the input: see :class:`PackedLinear`."""

    dtype = "int8"

    def quantize(self, weight: Tensor) -> Tensor:
        self.scale = weight.abs().amax(dim=1) / 127
        steps = (weight / self.scale[:, None]).nan_to_num(0)  # NaN where all weights of an output are 0
        return steps.round().to(torch.int8)

    def pack(self, weight: Tensor) -> Tensor:
        self.multiply = int8_product(weight, self.scale)
        return weight  # the product has a copy in an order of its own

    def unpack(self) -> Tensor:
        return self.packed

    def product(self, input: Tensor) -> Tensor:
        if input.dim() == 1:  # fbgemm takes matrices
            return self.product(input[None])[0]
        largest = input.abs().amax(dim=-1, keepdim=True)
        # A row of zeros becomes 0 / 0 here and arbitrary integers in the product; the factor 0 after it makes it 0.
        output = self.multiply(input / largest)
        return output * largest if self.bias is None else torch.addcmul(self.bias, output, largest)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "multiply": None}

    @classmethod
    def note(cls) -> str:
        return (
            "" if levels() == 127 else "no AVX-512 VNNI: inputs have 7 bits, products are little faster than in float32"
        )


PACKED_FORMS: dict[str, type[PackedLinear]] = {
    form.dtype: form for form in (PackedFloat32Linear, PackedBFloat16Linear, PackedInt8Linear)
}
INFERENCE_DTYPES = tuple(PACKED_FORMS)


@functools.cache
def is_supported(dtype: str) -> bool:
    """Whether this machine's PyTorch has the product of ``dtype``; if not, float32 falls back on unpacked layers."""
    try:
        PACKED_FORMS[dtype](nn.Linear(32, 32))(torch.zeros(2, 32))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True


def processor_note(dtype: str) -> str:
    """The features that this machine lacks for packed weights in ``dtype``, in one line; empty where it has all."""
    return PACKED_FORMS[dtype].note() if is_supported(dtype) else "no packed products in this PyTorch on this processor"


def check_packable(module: nn.Module, dtype: str) -> None:
    """Refuses what :func:`pack_linears_` would refuse.

    Raises:
        ValueError: another dtype, one that this machine has no product for, or weights that are not float32 on a CPU.
    """
    if dtype not in PACKED_FORMS:
        raise ValueError(f"dtype must be one of {', '.join(PACKED_FORMS)}, got {dtype!r}")
    if dtype != "float32" and not is_supported(dtype):
        raise ValueError(f"{dtype}: {processor_note(dtype)}")
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and (parameter.device.type != "cpu" or parameter.dtype != torch.float32):
            kind = f"{str(parameter.dtype).removeprefix('torch.')} on {parameter.device}"
            raise ValueError(f"weights must be float32 on the CPU to be packed, {name} is {kind}")


def pack_linears_(module: nn.Module, dtype: str) -> nn.Module:
    """Replaces every :class:`torch.nn.Linear` inside ``module`` by a :class:`PackedLinear`, in place.

    A layer or weight that is used in several places is packed once. Subclasses of ``nn.Linear`` and all other
    modules stay as they are; one that reads the ``weight`` of its linear layers itself cannot be packed. The parameters
    that remain take no gradients. The weight of an embedding that was tied to a linear layer stays beside the packed
    one.

    Args:
        module: float32, on the CPU.
        dtype: one of ``INFERENCE_DTYPES``.

    Returns:
        ``module``, or its packed form where it is itself a linear layer.

    Raises:
        ValueError: another dtype, one that this machine has no product for, or weights that are not float32 on a CPU.
    """
    check_packable(module, dtype)
    module.requires_grad_(False)
    if not is_supported(dtype):
        return module
    packed: dict[tuple[int, int], PackedLinear] = {}

    def form(linear: nn.Linear) -> PackedLinear:
        key = id(linear.weight), id(linear.bias)
        if key not in packed:
            packed[key] = PACKED_FORMS[dtype](linear).eval()
        return packed[key]

    if type(module) is nn.Linear:
        return form(module)
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # named_children() hides the second place of a shared layer
            if type(child) is nn.Linear and child.weight.numel():
                setattr(parent, name, form(child))
    return module


def _frozen(tensor: Tensor) -> nn.Parameter:
    """A parameter, so that a packed model still counts its weights."""
    return nn.Parameter(tensor, requires_grad=False)

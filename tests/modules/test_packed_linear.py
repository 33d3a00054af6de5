"""Packed linear layers give what the layers they were made from give, to the precision of their dtype."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fairseq_ext.modules import int8_product, packed_linear
from fairseq_ext.modules.int8_product import PRODUCTS, levels
from fairseq_ext.modules.packed_linear import INFERENCE_DTYPES, is_supported, pack_linears_, processor_note

# Relative to the sum of |x| |W|, where all rounding of a product happens.
PRECISION = {"float32": 2**-20, "bfloat16": 2**-7}
every_dtype = pytest.mark.parametrize("dtype", INFERENCE_DTYPES)


def linear(width: int = 6, outputs: int = 5, bias: bool = True, seed: int = 0) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(width, outputs, bias=bias)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return layer


def packed(layer: nn.Module, dtype: str) -> nn.Module:
    return pack_linears_(copy.deepcopy(layer), dtype)


def bound(layer: nn.Linear, x: Tensor, dtype: str, levels: int = 127) -> Tensor:
    """The largest error that the stored numbers allow, for each output."""
    weight, x = layer.weight.double().abs(), x.double().abs()
    sums = x @ weight.t() + (0 if layer.bias is None else layer.bias.double().abs())
    if dtype != "int8":
        return PRECISION[dtype] * sums + 1e-30
    # half a step of the weight times the input, and half a step of the input times the weight
    steps = x.sum(-1, keepdim=True) * weight.amax(1) / 127 + x.amax(-1, keepdim=True) * weight.sum(1) / levels
    cross = x.size(-1) * x.amax(-1, keepdim=True) * weight.amax(1) / 127 / levels
    return (steps / 2 + cross) * 1.001 + 1e-5 * sums + 1e-30


@every_dtype
@given(
    shape=st.lists(st.integers(0, 4), min_size=0, max_size=3),
    width=st.integers(1, 70),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
    exponent=st.integers(-6, 6),
    seed=st.integers(0, 1000),
)
def test_the_error_is_that_of_the_stored_numbers(dtype, shape, width, outputs, bias, exponent, seed):
    layer = linear(width, outputs, bias, seed)
    layer.weight.data[seed % outputs] = 0
    x = torch.randn(*shape, width, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    x = x * (torch.arange(x.numel() // width) % 3).view(*shape, 1)  # rows of zeros and of other sizes
    with torch.no_grad():
        result, expected = packed(layer, dtype)(x), layer.double()(x.double())
    assert result.shape == expected.shape and result.dtype == torch.float32
    assert ((result - expected).abs() <= bound(layer, x, dtype)).all()


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_int8_product_is_exact_in_integers(name):
    """Whole numbers of steps are not rounded: what remains is the product of integers, extremes included."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (40, 70), generator=generator, dtype=torch.int8)
    steps = torch.randint(-levels(), levels() + 1, (3, 5, 70), generator=generator)
    steps[0, 0], steps[0, 1], weight[0], weight[1] = levels(), -levels(), 127, -127
    scale = torch.rand(40, generator=generator) + 0.5
    result = PRODUCTS[name](weight, scale)(steps / levels())
    exact = steps.double() @ weight.double().t() * scale.double() / levels()
    torch.testing.assert_close(result.double(), exact, rtol=1e-6, atol=1e-4)


def test_without_fbgemm_the_other_product_serves(monkeypatch):
    layer, x = linear(), torch.randn(4, 6)
    first = packed(layer, "int8")(x)
    monkeypatch.setattr(int8_product, "_works", lambda name: name != "fbgemm")
    torch.testing.assert_close(packed(layer, "int8")(x), first, atol=0.05, rtol=0)
    monkeypatch.setattr(int8_product, "_works", lambda name: False)
    assert not is_supported.__wrapped__("int8")


@pytest.mark.parametrize("rows", [1, 5, 64, 320])
@every_dtype
def test_at_the_sizes_of_decoding(dtype, rows):
    layer, x = linear(512, 1000), torch.randn(rows, 512, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        error = (packed(layer, dtype)(x) - layer(x)).norm() / layer(x).norm()
    assert error < {"float32": 1e-6, "bfloat16": 5e-3, "int8": 2e-2}[dtype]


@every_dtype
def test_a_row_does_not_depend_on_the_others(dtype):
    layer, x = linear(64, 40), torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    alone = packed(layer, dtype)(x[2:3])
    x[:2] *= 1000
    tolerance = 1e-6 if dtype != "bfloat16" else 2**-7  # sums may be taken in another order
    torch.testing.assert_close(packed(layer, dtype)(x)[2:3], alone, atol=1e-5, rtol=tolerance)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@every_dtype
def test_what_is_not_finite_stays_visible_in_its_row(dtype, value):
    x = torch.ones(3, 6)
    x[1, 2] = value
    result = packed(linear(), dtype)(x)
    assert result.isfinite().all(dim=1).tolist() == [True, False, True]


@every_dtype
def test_inputs_in_any_memory_order(dtype):
    layer = packed(linear(), dtype)
    x = torch.randn(4, 3, 6)
    for other in (x.transpose(0, 1), torch.randn(6, 4).t(), torch.randn(8, 20)[::2, 3:9]):
        torch.testing.assert_close(layer(other), layer(other.contiguous()))


@every_dtype
def test_weights_in_any_memory_order(dtype):
    layer, twin = linear(6, 6), linear(6, 6)
    twin.weight.data = twin.weight.t().contiguous().t()
    x = torch.randn(4, 6)
    assert torch.equal(packed(layer, dtype)(x), packed(twin, dtype)(x))


def test_without_vnni_no_sum_of_two_products_leaves_16_bits(monkeypatch):
    layer, x = linear(64, 20), torch.randn(5, 64)
    with_vnni = packed(layer, "int8")(x)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert 2 * (2 * levels()) * 127 <= 2**15 - 1
    with torch.no_grad():
        result, error = packed(layer, "int8")(x), (packed(layer, "int8")(x) - layer(x)).abs()
    assert (error <= bound(layer, x, "int8", levels=levels())).all() and not torch.equal(result, with_vnni)
    assert "VNNI" in processor_note("int8")


@every_dtype
def test_a_shared_layer_and_a_shared_weight_are_packed_once(dtype):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(9, 4)
            self.first = self.second = nn.Linear(4, 4)
            self.output = nn.Linear(4, 9, bias=False)
            self.other = nn.Linear(4, 9, bias=False)
            self.output.weight = self.other.weight = self.embedding.weight

    model = Tied()
    numbers = sum(parameter.numel() for parameter in model.parameters())
    pack_linears_(model, dtype)
    assert model.first is model.second and model.output is model.other
    assert type(model.embedding) is nn.Embedding and model.embedding.weight.dtype == torch.float32
    assert sum(parameter.numel() for parameter in model.parameters()) == numbers + 9 * 4
    assert not any(parameter.requires_grad for parameter in model.parameters())


@every_dtype
def test_subclasses_and_empty_layers_stay(dtype):
    class Scaled(nn.Linear):
        pass

    model = nn.Sequential(Scaled(3, 3), nn.Linear(3, 0), nn.Linear(3, 3))
    pack_linears_(model, dtype)
    assert [type(layer) for layer in model[:2]] == [Scaled, nn.Linear]
    assert model[2].dtype == dtype


@every_dtype
def test_copies_pickles_and_threads(dtype, tmp_path):
    layer, x = packed(nn.Sequential(linear()), dtype), torch.randn(50, 6)
    expected = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), expected)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(result, expected) for result in pool.map(layer, [x] * 20))


REFUSED = {
    "state_dict": lambda layer: layer.state_dict(),
    "load_state_dict": lambda layer: layer.load_state_dict({}),
    "torch.jit.script": torch.jit.script,
    "train": lambda layer: layer.train(),
    "half": lambda layer: layer.half(),
    "to another device": lambda layer: layer.to("meta"),
    "gradients": lambda layer: layer(torch.ones(2, 6, requires_grad=True)),
    "double": lambda layer: layer(torch.ones(2, 6).double()),
}


@pytest.mark.parametrize("name", REFUSED)
@every_dtype
def test_what_packed_weights_cannot_do_is_refused(dtype, name):
    layer = packed(nn.Sequential(linear()), dtype)
    with pytest.raises((RuntimeError, TypeError), match="packed weights"):
        REFUSED[name](layer)


@every_dtype
def test_what_changes_nothing_is_allowed(dtype):
    layer, x = packed(nn.Sequential(linear()), dtype), torch.randn(2, 6)
    assert torch.equal(layer.eval().cpu().float().to(torch.float32)(x), layer(x))
    assert dtype in repr(layer)


def test_other_dtypes_and_weights_are_refused_and_nothing_is_packed():
    with pytest.raises(ValueError, match="float32, bfloat16, int8"):
        pack_linears_(linear(), "int4")
    for model, kind in ((nn.Sequential(linear(), linear().half()), "float16 on cpu"), (linear().to("meta"), "on meta")):
        with pytest.raises(ValueError, match=kind):
            pack_linears_(model, "int8")
        assert not any(isinstance(module, packed_linear.PackedLinear) for module in model.modules())


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_without_the_product_float32_stays_unpacked_and_the_others_are_refused(dtype, monkeypatch):
    monkeypatch.setattr(packed_linear, "is_supported", lambda dtype: False)
    layer = linear()
    assert pack_linears_(layer, "float32") is layer and type(layer) is nn.Linear
    with pytest.raises(ValueError, match=f"{dtype}: no packed products"):
        pack_linears_(layer, dtype)
    assert processor_note("float32") == processor_note(dtype) != ""


def test_support_is_what_a_product_says(monkeypatch):
    def missing(self, input):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(packed_linear.PackedInt8Linear, "product", missing)
    assert [is_supported.__wrapped__(dtype) for dtype in INFERENCE_DTYPES] == [True, True, False]

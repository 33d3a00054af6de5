"""Dynamic convolution and kernel gate of MUSE: reference values, then the properties that must hold."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fairseq_ext.modules import dynamic_convolution as dynamic
from fairseq_ext.modules.dynamic_convolution import DynamicConv, dynamic_convolution
from fairseq_ext.modules.muse import KernelGate, MultiScaleConv, parse_kernels
from tests.helpers import golden_files, golden_names, load_golden

CLOSE = {"rtol": 1e-6, "atol": 1e-6}
EXACT = {"rtol": 1e-10, "atol": 1e-12}
CONFIGS = {name: entry["config"] for name, entry in json.loads(golden_files("muse")["manifest.json"]).items()}


def fixture(name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in load_golden("muse", name).items()}


def by_definition(x: Tensor, kernels: Tensor, first: int) -> Tensor:
    """The convolution one product at a time."""
    steps, batch, heads, width = kernels.shape
    out = x.new_zeros(steps, batch, x.size(2))
    for t in range(steps):
        for j in range(width):
            if 0 <= t + first + j < x.size(0):
                out[t] += kernels[t, :, :, j].repeat_interleave(x.size(2) // heads, dim=1) * x[t + first + j]
    return out


# --- reference values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", golden_names("muse", "dynconv_"))
def test_dynamic_conv_golden(name):
    data, cfg = fixture(name), CONFIGS[name]
    conv = DynamicConv(cfg["C"], cfg["heads"], cfg["K"], causal=cfg["mode"] == "causal").double().eval()
    conv.load_state_dict({"weight_linear.weight": data["w.weight_linear.weight"]})
    x = data["x"].requires_grad_()

    torch.testing.assert_close(conv.kernels(x), data["kernel"], **CLOSE)
    out = conv(x)
    out.backward(data["grad_out"])
    torch.testing.assert_close(out, data["out"], **CLOSE)
    torch.testing.assert_close(x.grad, data["g_x"], **CLOSE)
    torch.testing.assert_close(conv.weight_linear.weight.grad, data["g.weight_linear.weight"], **CLOSE)

    if conv.causal:
        state = None
        for t, expected in enumerate(data["out_steps"]):
            out, state = conv.step(x[t : t + 1], state)
            torch.testing.assert_close(out[0], expected, **CLOSE)
        if cfg["K"] == 1:
            assert state.shape == (cfg["B"], cfg["C"], 0)
        else:
            torch.testing.assert_close(state, data["state"][0], **CLOSE)


@pytest.mark.parametrize("name", golden_names("muse", "gate_"))
def test_kernel_gate_golden(name):
    data, n = fixture(name), CONFIGS[name]["n"]
    gate = KernelGate(n).double()
    gate.load_state_dict({"weight": data["w.gate"]})
    branches = [data[f"conv.{i}"].requires_grad_() for i in range(n)]

    out = gate(branches)
    out.backward(data["grad_out"])
    torch.testing.assert_close(out, data["out"], **CLOSE)
    torch.testing.assert_close(gate.weight.grad, data["g.gate"], **CLOSE)
    for i, branch in enumerate(branches):
        torch.testing.assert_close(branch.grad, data[f"g_conv.{i}"], **CLOSE)


@pytest.mark.parametrize("name", golden_names("muse", "pmha_"))
def test_attention_with_convolution_golden(name):
    data, cfg = fixture(name), CONFIGS[name]
    heads, dim, causal = cfg["heads"], cfg["embed_dim"], cfg["attn_type"] == "ds"
    kernels = cfg["attn_wide_kernels"] if cfg["attn_dynamic_type"] == 2 else [cfg["kernel_size"]]
    conv = MultiScaleConv(dim, heads, kernels, causal, gate=bool(cfg["dynamic_gate"])).double().eval()
    weights = {
        f"convs.{i}.weight_linear.weight": data[f"w.dynamics.{i}.weight_linear.weight"] for i in range(len(kernels))
    }
    if conv.gate is not None:
        weights["gate.weight"] = data["w.dynamic_gate_para"]
    conv.load_state_dict(weights)
    names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    w_in, b_in, w_out, b_out = projections = [data[f"w.{key}"].requires_grad_() for key in names]
    x = data["x"].requires_grad_()
    pad_mask = data["pad_mask"].bool() if "pad_mask" in data else None

    q, k, v = F.linear(x, w_in, b_in).chunk(3, dim=-1)
    q, k, value = (t.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for t in (q, k, v))
    logits = q @ k.mT / math.sqrt(dim // heads)
    if causal:
        logits = logits + torch.full_like(logits, -math.inf).triu(1)
    if pad_mask is not None:
        logits = logits.masked_fill(pad_mask[:, None, None], -math.inf)
    # the reference takes the softmax of attention in single precision
    attention = (logits.float().softmax(-1).double() @ value).permute(2, 0, 1, 3).flatten(2)
    # Both the published behaviour, where padding is convolved too, and the masked one.
    convolved = conv(v, pad_mask if cfg["dynamic_padding"] else None)
    branches = torch.cat([attention, convolved], dim=-1)
    out = F.linear(branches, w_out, b_out)
    out.backward(data["grad_out"])

    assert convolved.size(-1) == conv.out_dim
    torch.testing.assert_close(branches, data["out_proj_in"], **CLOSE)
    torch.testing.assert_close(out, data["out"], **CLOSE)
    torch.testing.assert_close(x.grad, data["g_x"], **CLOSE)
    for key, weight in zip(names, projections, strict=True):
        torch.testing.assert_close(weight.grad, data[f"g.{key}"], **CLOSE)
    for i, branch in enumerate(conv.convs):
        expected = data[f"g.dynamics.{i}.weight_linear.weight"]
        torch.testing.assert_close(branch.weight_linear.weight.grad, expected, **CLOSE)
    if conv.gate is not None:
        torch.testing.assert_close(convolved, data["gated_conv"], **CLOSE)
        torch.testing.assert_close(conv.gate.weight.grad, data["g.dynamic_gate_para"], **CLOSE)


# --- properties of the convolution --------------------------------------------------------------------------------


@given(
    steps=st.integers(1, 12), past=st.integers(0, 5), width=st.integers(1, 17), block=st.integers(1, 14), data=st.data()
)
def test_convolution_by_definition(steps, past, width, block, data):
    offset = data.draw(st.integers(0, width - 1))
    x = torch.randn(past + steps, 2, 6, dtype=torch.double)
    kernels = torch.randn(steps, 2, 3, width, dtype=torch.double)
    out = dynamic_convolution(x, kernels, first=past - offset, block_size=block)
    torch.testing.assert_close(out, by_definition(x, kernels, past - offset), **EXACT)


@pytest.mark.parametrize("causal", [False, True])
def test_long_inputs_agree_with_short_ones(causal):
    conv = DynamicConv(8, 2, 7, causal).double().eval()
    x = torch.randn(2 * dynamic._BLOCK + 44, 1, 8, dtype=torch.double)
    expected = by_definition(x, conv.kernels(x), -conv.padding)
    torch.testing.assert_close(conv(x), expected, **EXACT)


@given(
    length=st.integers(1, 12),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    gate=st.booleans(),
    data=st.data(),
)
def test_steps_equal_full_sequence(length, sizes, gate, data):
    conv = MultiScaleConv(8, 4, sizes, causal=True, gate=gate).double().eval()
    x = torch.randn(length, 3, 8, dtype=torch.double)
    outputs, state, done = [], None, 0
    while done < length:
        new = data.draw(st.integers(1, length - done))
        out, state = conv.step(x[done : done + new], state)
        outputs.append(out)
        done += new
        assert [tuple(s.shape) for s in state] == [(3, 8, min(done, size - 1)) for size in sizes]
    torch.testing.assert_close(torch.cat(outputs), conv(x), **EXACT)


@pytest.mark.parametrize("gate", [True, False])
def test_no_positions_give_no_output(gate):
    conv = MultiScaleConv(8, 2, [3, 5], causal=True, gate=gate)
    for shape in ((0, 3, 8), (4, 0, 8), (0, 0, 8)):
        x = torch.randn(shape, requires_grad=True)
        out = conv(x)
        assert out.shape == (*shape[:2], conv.out_dim)
        assert torch.autograd.grad(out.sum(), x)[0].shape == shape


def test_scripted_steps_equal_the_sequence():
    conv = MultiScaleConv(8, 2, [3, 5], causal=True).eval()
    scripted = torch.jit.script(conv)
    x = torch.randn(4, 3, 8)
    first, state = scripted.step(x[:1])
    rest, _ = scripted.step(x[1:], state)
    torch.testing.assert_close(torch.cat([first, rest]), conv(x))


def test_state_follows_beam_search():
    conv = DynamicConv(8, 2, 5, causal=True).double().eval()
    x = torch.randn(6, 3, 8, dtype=torch.double)
    order = torch.tensor([2, 2, 0])
    _, state = conv.step(x[:4])
    out, _ = conv.step(x[4:], state.index_select(0, order))
    expected = conv(torch.cat([x[:4, order], x[4:]]))[4:]
    torch.testing.assert_close(out, expected, **EXACT)


@given(length=st.integers(2, 12), data=st.data())
def test_causal_never_looks_ahead(length, data):
    conv = MultiScaleConv(8, 2, [3, 4, 15], causal=True).double().eval()
    cut = data.draw(st.integers(1, length - 1))
    x = torch.randn(length, 2, 8, dtype=torch.double)
    changed = torch.cat([x[:cut], torch.randn(length - cut, 2, 8, dtype=torch.double)])
    torch.testing.assert_close(conv(changed)[:cut], conv(x)[:cut], **EXACT)


@given(length=st.integers(1, 8), left=st.integers(0, 9), right=st.integers(0, 9), gate=st.booleans())
def test_masked_padding_changes_nothing(length, left, right, gate):
    conv = MultiScaleConv(8, 2, [3, 7], gate=gate).double().eval()
    x = torch.randn(length, 1, 8, dtype=torch.double)
    padded = torch.cat([torch.randn(left, 1, 8).double(), x, torch.randn(right, 1, 8).double()])
    mask = torch.ones(1, left + length + right, dtype=torch.bool)
    mask[:, left : left + length] = False
    torch.testing.assert_close(conv(padded, mask)[left : left + length], conv(x), **EXACT)


def test_unmasked_padding_leaks_into_its_neighbours():
    conv = MultiScaleConv(8, 2, [3]).eval()
    x, padded = torch.randn(4, 1, 8), torch.randn(6, 1, 8)
    padded[:4] = x
    out, alone = conv(padded), conv(x)
    torch.testing.assert_close(out[:3], alone[:3])
    assert not torch.allclose(out[3], alone[3], atol=1e-3)


def test_taps_outside_are_dropped_and_not_renormalised():
    conv = DynamicConv(4, 2, 5).double().eval()
    nn.init.zeros_(conv.weight_linear.weight)
    out = conv(torch.ones(4, 1, 4, dtype=torch.double))
    torch.testing.assert_close(out[:, 0, 0], torch.tensor([3, 4, 4, 3]).double() / 5)


@pytest.mark.parametrize("causal", [False, True])
def test_kernel_of_one_is_the_identity(causal):
    x = torch.randn(5, 2, 8)
    torch.testing.assert_close(DynamicConv(8, 2, 1, causal).eval()(x), x)


def test_gate_mixes_the_convolutions():
    conv = MultiScaleConv(8, 2, [5, 1, 3]).double().eval()
    nn.init.normal_(conv.gate.weight)
    x = torch.randn(6, 2, 8, dtype=torch.double)
    shares = conv.gate.weight.softmax(0)
    expected = sum(shares[i] * conv.convs[i](x) for i in range(3))
    torch.testing.assert_close(conv(x), expected, **EXACT)
    torch.testing.assert_close(conv.gate(torch.eye(3).double().unbind()), shares, **EXACT)


def test_weight_dropout_falls_on_the_kernels_in_training_only():
    conv = DynamicConv(4, 2, 3, weight_dropout=0.4)
    x = torch.randn(400, 4, 4)
    conv.eval()
    torch.testing.assert_close(conv.kernels(x).sum(-1), torch.ones(400, 4, 2))
    kept = conv.kernels(x) / 0.6
    conv.train()
    dropped = conv.kernels(x)
    assert abs((dropped == 0).float().mean() - 0.4) < 0.03
    torch.testing.assert_close(dropped, torch.where(dropped == 0, 0.0, kept))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_the_dtype(dtype):
    conv = MultiScaleConv(8, 2, [3, 5], causal=True).to(dtype)
    x = torch.randn(4, 2, 8, dtype=dtype)
    out, state = conv.step(x)
    assert conv(x).dtype == out.dtype == state[0].dtype == dtype


@pytest.mark.parametrize(("causal", "gate"), [(False, True), (True, True), (False, False)])
def test_gradcheck(causal, gate):
    conv = MultiScaleConv(4, 2, [3, 7], causal, gate, weight_dropout=0.0).double()
    mask = torch.tensor([[False] * 4, [True, False, False, False]])
    x = torch.randn(4, 2, 4, dtype=torch.double, requires_grad=True)
    # The parameters are used in place: gradcheck moves them itself.
    assert torch.autograd.gradcheck(lambda x, *_: conv(x, mask), (x, *conv.parameters()))


def test_gated_convolution_is_second_order_differentiable():
    conv = MultiScaleConv(4, 2, [1, 3], weight_dropout=0.0).double()
    x = torch.randn(3, 1, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(conv, (x,))


# --- parameters --------------------------------------------------------------------------------


def test_parameters():
    conv = MultiScaleConv(12, 3, (3, 15))
    assert {name: tuple(p.shape) for name, p in conv.named_parameters()} == {
        "convs.0.weight_linear.weight": (9, 12),
        "convs.1.weight_linear.weight": (45, 12),
        "gate.weight": (2,),
    }
    assert conv.out_dim == 12
    assert MultiScaleConv(12, 3, (3, 15), gate=False).out_dim == 24
    assert MultiScaleConv(12, 3, (3, 15), gate=False).gate is None


def test_initial_convolution():
    conv = MultiScaleConv(64, 8, (3, 15, 5))
    nn.init.constant_(conv.gate.weight, 7)
    nn.init.constant_(conv.convs[1].weight_linear.weight, 7)
    conv.reset_parameters()
    for branch in conv.convs:
        weight = branch.weight_linear.weight
        assert 0.99 / 8 < weight.abs().max() <= 1 / 8
        assert weight.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.03)
    torch.testing.assert_close(conv.gate.weight.data, torch.full((3,), 1 / 3))


# --- options ------------------------------------------------------------------------------------------------------


def test_parse_kernels():
    assert parse_kernels("3,15", 3) == [(3, 15)] * 3
    assert parse_kernels("3/3/7,15", 3) == [(3,), (3,), (7, 15)]
    assert parse_kernels(" 3, 15 ", 1) == [(3, 15)]
    assert parse_kernels("7", 2) == [(7,), (7,)]


@pytest.mark.parametrize("text", ["", "3,", "3//5", "a", "0", "3,-1", "3.0", "1_0", "3;15", "²"])
def test_parse_kernels_rejects(text):
    with pytest.raises(ValueError, match=r"--muse-kernels") as error:
        parse_kernels(text, 3)
    assert repr(text) in str(error.value)
    assert "\n" not in str(error.value)


def test_parse_kernels_counts_the_layers():
    with pytest.raises(ValueError, match=r"--muse-kernels '3/5' names 2 layers, but the model has 6"):
        parse_kernels("3/5", 6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DynamicConv(8, 2, 4), r"kernel_size must be odd in the encoder .*got 4"),
        (lambda: DynamicConv(8, 2, 0, causal=True), r"kernel_size must be at least 1, got 0"),
        (lambda: DynamicConv(8, 3, 3), r"embed_dim \(8\) must be a multiple of num_heads \(3\)"),
        (lambda: DynamicConv(8, 0, 3), r"num_heads \(0\)"),
        (lambda: DynamicConv(8, 2, 3, weight_dropout=1.0), r"weight_dropout must be in \[0, 1\), got 1.0"),
        (lambda: DynamicConv(8, 2, 3).step(torch.zeros(1, 1, 8)), r"step needs .*causal=False"),
        (lambda: KernelGate(0), r"num_kernels must be at least 1, got 0"),
        (lambda: KernelGate(2)([torch.zeros(1)]), r"branches must be 2 tensors.* got 1"),
        (lambda: MultiScaleConv(8, 2, []), r"kernel_sizes .* got none"),
    ],
)
def test_error_lines(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def test_repr_names_the_options():
    assert "8, num_heads=2, kernel_size=3, causal=True" in repr(DynamicConv(8, 2, 3, causal=True))
    assert repr(KernelGate(2)) == "KernelGate(2)"

"""LayerNorm-simple, AdaNorm and DetachNorm: golden values, the facts their derivation promises, and awkward inputs."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fairseq_ext.modules.normalization import (
    NORMS,
    AdaNorm,
    DetachNorm,
    LayerNormSimple,
    create_norm,
)
from tests.helpers import golden_names, load_golden

EACH = [
    pytest.param(lambda size, **kw: LayerNormSimple(size, **kw), id="simple"),
    pytest.param(lambda size, **kw: AdaNorm(size, scale=2.0, k=0.2, **kw), id="adanorm"),
    *(pytest.param(lambda size, d=d, **kw: DetachNorm(size, d, **kw), id=d) for d in ("both", "mean", "std")),
]


def run(norm, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of ``(output * g).sum()``."""
    x = x.detach().clone().requires_grad_()
    z = norm(x)
    z.backward(g)
    return z.detach(), x.grad


def plain(x: Tensor, scale=1.0, k=0.0, eps=1e-5, unbiased=True, mean_detached=False, std_detached=False) -> Tensor:
    """The definitions, in torch operations that autograd differentiates."""
    mean = x.mean(-1, keepdim=True)
    if unbiased:
        s = x.std(-1, keepdim=True) + eps
    else:
        s = (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    y = (x - (mean.detach() if mean_detached else mean)) / (s.detach() if std_detached else s)
    return scale * (1 - k * y.detach()) * y


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 1
    return x.to(dtype), torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def assert_rows_close(actual: Tensor, expected: Tensor, rtol: float, msg: str) -> None:
    """Compare each row on the scale of its own largest entry."""
    error = (actual - expected).abs().amax(-1)
    bound = rtol * expected.abs().amax(-1)
    assert (error <= bound).all(), f"{msg}: {(error - bound).max()} over the bound"


class TestGolden:
    @pytest.mark.parametrize("name", golden_names("adanorm", "op_"))
    def test_values_and_gradients(self, name: str) -> None:
        data = {key: torch.from_numpy(value) for key, value in load_golden("adanorm", name).items() if value.ndim}
        x, g, size = data["x"], data["g"], data["x"].shape[-1]
        norms = {
            f"adanorm_{i}": AdaNorm(size, c.item(), k.item())
            for i, (c, k) in enumerate(zip(data["C"], data["k"], strict=True))
        }
        norms |= {f"detach_{what}": DetachNorm(size, what) for what in ("both", "mean", "std")}
        norms["simple"] = LayerNormSimple(size)
        norms["torch_ln"] = LayerNormSimple(size, unbiased=False)
        for key, norm in norms.items():
            z, gx = run(norm, x, g)
            torch.testing.assert_close(
                z, data[f"{key}_z"], rtol=1e-12, atol=1e-12, msg=lambda m, key=key: f"{key}: {m}"
            )
            # H = 2 cancels to ~1e-5 of the upstream gradient, hence the absolute part.
            torch.testing.assert_close(
                gx, data[f"{key}_gx"], rtol=1e-12, atol=1e-13, msg=lambda m, key=key: f"{key}: {m}"
            )

    def test_degenerate_rows(self) -> None:
        data = {key: torch.from_numpy(value) for key, value in load_golden("adanorm", "edge").items()}
        x, g = data["x"], data["g"]
        for j, eps in enumerate(data["eps_list"].tolist()):
            for key, norm in {
                "adanorm": AdaNorm(8, eps=eps),
                "simple": LayerNormSimple(8, eps=eps),
                "detach_both": DetachNorm(8, eps=eps),
            }.items():
                z, gx = run(norm, x, g)
                assert_rows_close(z, data[f"{key}_{j}_z"], 1e-12, f"{key}, eps={eps}, output")
                assert_rows_close(gx, data[f"{key}_{j}_gx"], 1e-12, f"{key}, eps={eps}, gradient")


class TestGradient:
    @pytest.mark.parametrize("make", EACH)
    def test_input_and_upstream_gradient_keep_their_values(self, make):
        x, g = draw(6, 16)
        before = x.clone(), g.clone()
        leaf = x.clone().requires_grad_()
        z = make(16)(leaf)
        kept = z.detach().clone()
        first, second = (torch.autograd.grad(z, leaf, g, retain_graph=True)[0] for _ in range(2))
        assert torch.equal(first, second) and torch.equal(z, kept)
        assert torch.equal(x, before[0]) and torch.equal(g, before[1]) and torch.equal(leaf, x)

    @pytest.mark.parametrize("unbiased", [True, False])
    @pytest.mark.parametrize(
        ("norm", "options"),
        [
            (LayerNormSimple, {}),
            (AdaNorm, {"scale": 1.7, "k": 0.3}),
            (DetachNorm, {"detach": "both"}),
            (DetachNorm, {"detach": "mean"}),
            (DetachNorm, {"detach": "std"}),
        ],
    )
    def test_closed_form_is_what_autograd_finds(self, norm, options: dict, unbiased: bool) -> None:
        x, g = draw(3, 5, 12)
        detach = options.get("detach", "")
        reference = {key: value for key, value in options.items() if key != "detach"}
        reference |= {"mean_detached": detach in ("both", "mean"), "std_detached": detach in ("both", "std")}
        # A large epsilon, so that its place matters.
        got = run(norm(12, eps=0.5, unbiased=unbiased, **options), x, g)
        want = run(lambda x: plain(x, eps=0.5, unbiased=unbiased, **reference), x, g)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("unbiased", [True, False])
    def test_gradcheck(self, unbiased: bool) -> None:
        x = draw(2, 3, 4)[0].requires_grad_()
        assert torch.autograd.gradcheck(LayerNormSimple((3, 4), unbiased=unbiased), x)
        assert torch.autograd.gradcheck(AdaNorm(4, scale=1.5, k=0.0, unbiased=unbiased), x)

    def test_the_factor_of_adanorm_is_detached(self) -> None:
        x, g = draw(6, 10)
        phi = 1.5 * (1 - 0.2 * LayerNormSimple(10)(x))
        _, want = run(LayerNormSimple(10), x, phi * g)
        _, got = run(AdaNorm(10, scale=1.5, k=0.2), x, g)
        torch.testing.assert_close(got, want)

    def test_moments(self) -> None:
        """What each detachment does to the mean and the variance of the gradient, in the paper's convention."""
        x, g = draw(20, 16)
        sigma = x.std(-1, unbiased=False)
        mean, var = g.mean(-1), g.var(-1, unbiased=False)
        y = LayerNormSimple(16, eps=0.0, unbiased=False)(x)

        def moments(norm: nn.Module) -> tuple[Tensor, Tensor]:
            gx = run(norm, x, g)[1]
            return gx.mean(-1), gx.var(-1, unbiased=False)

        zero = torch.zeros_like(mean)
        both = moments(DetachNorm(16, "both", eps=0.0, unbiased=False))
        torch.testing.assert_close(both, (mean / sigma, var / sigma**2))
        std = moments(DetachNorm(16, "std", eps=0.0, unbiased=False))
        torch.testing.assert_close(std, (zero, var / sigma**2))
        simple = moments(LayerNormSimple(16, eps=0.0, unbiased=False))
        torch.testing.assert_close(simple, (zero, (var - (g * y).mean(-1) ** 2) / sigma**2))
        only_mean = moments(DetachNorm(16, "mean", eps=0.0, unbiased=False))
        torch.testing.assert_close(only_mean[0], mean / sigma)
        assert (only_mean[1] < var / sigma**2).all()

    def test_means_in_the_unbiased_convention(self) -> None:
        x, g = draw(20, 16)
        s = x.std(-1) + 0.1
        for what, want in {"both": g.mean(-1) / s, "mean": g.mean(-1) / s, "std": torch.zeros(20).double()}.items():
            gx = run(DetachNorm(16, what, eps=0.1), x, g)[1]
            torch.testing.assert_close(gx.mean(-1), want)
        gx = run(LayerNormSimple(16, eps=0.1), x, g)[1]
        torch.testing.assert_close(gx.mean(-1), torch.zeros(20).double())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("value", [0.0, 3.5, 0.1])
    def test_constant_rows(self, value: float, dtype: torch.dtype) -> None:
        """Padded positions are constant rows: their output is 0 and their gradient finite."""
        g = draw(1, 96, dtype=dtype)[1]
        x = torch.full((1, 96), value, dtype=dtype)
        for norm, want in ((LayerNormSimple(96), (g - g.mean()) / 1e-5), (DetachNorm(96), g / 1e-5)):
            z, gx = run(norm, x, g)
            assert not z.any()
            torch.testing.assert_close(gx, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())

    def test_large_offset_keeps_its_digits(self) -> None:
        """In float32, a row with a mean of 1000 and a deviation of 0.01 (exact inputs: multiples of 2**-10)."""
        steps, g = draw(1, 64, dtype=torch.float32)
        x = 1000 + (steps * 8).round() / 1024
        want = run(LayerNormSimple(64), x.double(), g.double())
        got = run(LayerNormSimple(64), x, g)
        for actual, expected in zip(got, want, strict=True):
            assert_rows_close(actual.double(), expected, 2e-3, "offset")

    def test_no_gradient_is_needed(self) -> None:
        x = draw(2, 4)[0]
        assert not AdaNorm(4)(x).requires_grad
        with torch.inference_mode():
            torch.testing.assert_close(AdaNorm(4)(x), plain(x, k=0.1))


class TestForward:
    @given(size=st.integers(2, 40), scale=st.floats(0.1, 3), k=st.floats(0, 0.5), seed=st.integers(0, 99))
    def test_moments(self, size: int, scale: float, k: float, seed: int) -> None:
        x = draw(3, size, seed=seed)[0]
        y = LayerNormSimple(size, eps=0.0)(x)
        z = AdaNorm(size, scale, k, eps=0.0)(x)
        zero = torch.zeros(3, dtype=x.dtype)
        torch.testing.assert_close(y.mean(-1), zero, atol=1e-10, rtol=0)
        torch.testing.assert_close(y.var(-1), zero + 1)
        torch.testing.assert_close(z.mean(-1), zero - k * scale * (size - 1) / size, atol=1e-10, rtol=0)
        torch.testing.assert_close(DetachNorm(size, eps=0.0)(x), y)

    @pytest.mark.parametrize(("unbiased", "peak"), [(True, 511 / math.sqrt(512)), (False, math.sqrt(511))])
    def test_an_outlier_flips_its_sign(self, unbiased: bool, peak: float) -> None:
        """The largest value that a normalised row can hold lies beyond 1 / k, where AdaNorm's output is negative."""
        x = torch.zeros(1, 512, dtype=torch.float64)
        x[0, 7] = 1e9
        y = LayerNormSimple(512, unbiased=unbiased)(x)
        z = AdaNorm(512, unbiased=unbiased)(x)
        assert y.max().item() == pytest.approx(peak)
        assert z[0, 7].item() == pytest.approx((1 - 0.1 * peak) * peak) and z[0, 7] < 0

    def test_paper_convention_is_torchs_layer_norm(self) -> None:
        x = draw(4, 3, 6)[0]
        got = LayerNormSimple((3, 6), eps=1e-3, unbiased=False)(x)
        torch.testing.assert_close(got, F.layer_norm(x, (3, 6), eps=1e-3), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("make", EACH)
    def test_last_dimensions_are_normalised_together(self, make) -> None:
        x, g = draw(4, 3, 6)
        got = run(make((3, 6)), x, g)
        want = run(make(18), x.flatten(1), g.flatten(1))
        torch.testing.assert_close(got, tuple(t.view(4, 3, 6) for t in want))

    @pytest.mark.parametrize("make", EACH)
    def test_memory_layout_does_not_matter(self, make) -> None:
        x, g = draw(5, 8, 7)
        norm = make(8)
        leaf = x.clone().requires_grad_()
        z = norm(leaf.transpose(1, 2))
        z.backward(g.transpose(1, 2))
        want = run(norm, x.transpose(1, 2).contiguous(), g.transpose(1, 2).contiguous())
        torch.testing.assert_close((z, leaf.grad.transpose(1, 2)), want, rtol=1e-12, atol=1e-12)
        # The gradient of a sum is one expanded number.
        leaf = x.transpose(1, 2).contiguous().requires_grad_()
        norm(leaf).sum().backward()
        want = run(norm, x.transpose(1, 2).contiguous(), torch.ones(5, 7, 8, dtype=x.dtype))[1]
        torch.testing.assert_close(leaf.grad, want)

    @pytest.mark.parametrize("make", EACH)
    def test_rows_do_not_see_each_other(self, make) -> None:
        x, g = draw(6, 5, 64, dtype=torch.float32)
        z, gx = run(make(64), x, g)
        alone = run(make(64), x[2:3, 1:2], g[2:3, 1:2])
        assert torch.equal(z[2:3, 1:2], alone[0])
        assert torch.equal(gx[2:3, 1:2], alone[1])

    @pytest.mark.parametrize("make", EACH)
    def test_input_is_left_alone_and_empty_batches_pass(self, make) -> None:
        x, g = draw(3, 8)
        before = x.clone()
        leaf = x.requires_grad_()
        make(8)(leaf).backward(g)
        assert torch.equal(x, before)
        z, gx = run(make(8), torch.empty(0, 8), torch.empty(0, 8))
        assert z.shape == gx.shape == (0, 8)


class TestHalfPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("make", EACH)
    @pytest.mark.parametrize("autocast", [False, True])
    def test_computed_in_float32(self, make, dtype: torch.dtype, autocast: bool) -> None:
        x, g = draw(4, 256, dtype=dtype)
        x[0] *= 1e-3  # its squares are below the smallest float16
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            z, gx = run(make(256), x, g)
        assert z.dtype == gx.dtype == dtype
        want = run(make(256), x.float(), g.float())
        assert torch.equal(z, want[0].to(dtype))
        assert torch.equal(gx, want[1].to(dtype))

    @pytest.mark.parametrize("make", EACH)
    def test_constant_rows_keep_a_finite_gradient(self, make) -> None:
        """Their slope is 1 / eps = 1e5, more than float16 holds."""
        x = torch.zeros(1, 8, dtype=torch.float16)
        g = torch.tensor([[1.0, -3.0, 2.0, 0.0, 5.0, 0.5, 0.0, 0.0]], dtype=torch.float16)
        z, gx = run(make(8), x, g)
        assert not z.any() and gx.isfinite().all() and gx.abs().max() == 65504

    def test_float32_stays_float32_under_autocast(self) -> None:
        x, g = draw(4, 32, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = run(AdaNorm(32), x, g)
        want = run(AdaNorm(32), x, g)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


class TestStateDict:
    @pytest.mark.parametrize("make", EACH)
    def test_no_parameters(self, make) -> None:
        norm = make(8)
        assert not norm.state_dict() and not list(norm.parameters()) and not list(norm.buffers())

    @pytest.mark.parametrize("weight", [1.0, 0.97])
    @pytest.mark.parametrize("make", EACH)
    def test_dead_entries_are_dropped(self, make, weight: float) -> None:
        model = nn.ModuleDict({"norm": make(4), "fc": nn.Linear(4, 4)})
        state = model.state_dict()
        state |= {"norm.weight": torch.full((4,), weight), "norm.bias": torch.zeros(4)}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.load_state_dict(state, strict=True)
        assert "norm.weight" in state, "the caller's dictionary was changed"

    @pytest.mark.parametrize("name", ["weight", "bias"])
    def test_trained_entries_are_dropped_with_a_warning(self, name: str) -> None:
        norm = LayerNormSimple(4)
        with pytest.warns(UserWarning, match=r"LayerNormSimple has no parameters.*trained"):
            norm.load_state_dict({name: torch.arange(4.0)})

    def test_other_entries_are_still_unexpected(self) -> None:
        with pytest.raises(RuntimeError, match="running_mean"):
            AdaNorm(4).load_state_dict({"running_mean": torch.zeros(4)})


class TestConstruction:
    def test_factory(self) -> None:
        shared = {"eps": 1e-3, "adanorm_scale": 2.0, "adanorm_k": 0.2, "detach": "std", "unbiased": False}
        norms = {kind: create_norm(kind, 6, **shared) for kind in NORMS}
        assert isinstance(norms["layernorm"], nn.LayerNorm) and norms["layernorm"].eps == 1e-3
        assert norms["layernorm"].elementwise_affine
        assert {kind: repr(norm) for kind, norm in norms.items() if kind != "layernorm"} == {
            "layernorm-simple": "LayerNormSimple((6,), eps=0.001, unbiased=False)",
            "adanorm": "AdaNorm((6,), scale=2.0, k=0.2, eps=0.001, unbiased=False)",
            "detachnorm": "DetachNorm((6,), detach='std', eps=0.001, unbiased=False)",
        }

    def test_defaults_agree(self) -> None:
        x = draw(2, 6)[0]
        assert torch.equal(create_norm("adanorm", 6)(x), AdaNorm(6)(x))
        assert (
            repr(create_norm("detachnorm", 6))
            == repr(DetachNorm(6))
            == "DetachNorm((6,), detach='both', eps=1e-05, unbiased=True)"
        )

    @pytest.mark.parametrize(
        ("kind", "nearest"),
        [("adanrom", "adanorm"), ("LayerNorm", "layernorm"), ("ADANORM", "adanorm"), ("simple", "layernorm-simple")],
    )
    def test_unknown_kind(self, kind: str, nearest: str) -> None:
        with pytest.raises(
            ValueError,
            match=rf"norm: unknown kind '{kind}', did you mean '{nearest}'\?.*layernorm-simple, adanorm, detachnorm",
        ):
            create_norm(kind, 8)

    def test_unknown_detach(self) -> None:
        with pytest.raises(ValueError, match="detach must be one of 'both', 'mean', 'std', got 'variance'"):
            DetachNorm(8, "variance")

    def test_one_element_has_no_unbiased_deviation(self) -> None:
        with pytest.raises(ValueError, match="normalized_shape must have at least 2 elements"):
            AdaNorm(1)
        assert AdaNorm(1, unbiased=False)(torch.ones(3, 1)).tolist() == [[0.0]] * 3


@pytest.mark.parametrize("form", ["eager", "script", "compile"])
def test_another_width_is_refused(form: str) -> None:
    norm = LayerNormSimple((2, 8))
    if form == "script":
        norm = torch.jit.script(norm)
    elif form == "compile":
        torch._dynamo.reset()
        norm = torch.compile(norm, backend="eager")
    for shape in ((2, 4), (8, 2), (8,)):
        with pytest.raises(Exception, match=r"input must end with the normalized_shape \[2, 8\]"):
            norm(torch.randn(shape))
    assert norm(torch.randn(3, 2, 8)).shape == (3, 2, 8)


def test_an_output_that_is_changed_in_place_is_an_error_that_says_so() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    AdaNorm(8)(x).relu_().sum().backward()
    for norm in (LayerNormSimple(8), DetachNorm(8)):
        with pytest.raises(RuntimeError, match=r"^the output of LayerNormSimple or DetachNorm was changed in place"):
            norm(x).relu_().sum().backward()

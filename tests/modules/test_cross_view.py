"""Cross-view decoding: schedules and fusions against golden values, with torch's own attention underneath."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fairseq_ext.modules.cross_view import FUSIONS, STRATEGIES, CrossViewFusion, check_cross_view, view_schedule
from tests.helpers import golden_names, load_golden

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}
SCHEDULES = {key: rows for key, rows in load_golden("gca", "views").items() if "_Ne" in key}


@pytest.mark.parametrize("key", SCHEDULES)
def test_schedules_match_the_tables(key: str) -> None:
    name, encoder_layers, decoder_layers = re.fullmatch(r"(.+)_Ne(\d+)_Nd(\d+)", key).groups()
    strategy = name.replace("_", "-").removesuffix("-noglobal")
    rows = [tuple(int(view) for view in row if view) for row in SCHEDULES[key]]
    assert view_schedule(strategy, int(encoder_layers), int(decoder_layers), not name.endswith("noglobal")) == rows


class TorchAttention(nn.Module):
    """torch's multi-head attention with the four projections of a golden file."""

    def __init__(self, golden: dict[str, Tensor], prefix: str, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            for part in ("weight", "bias"):
                self.register_parameter(f"{name}_{part}", nn.Parameter(golden[f"w.{prefix}.{name}.{part}"].clone()))

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        context, weights = F.multi_head_attention_forward(
            query,
            memory,
            memory,
            query.size(-1),
            self.num_heads,
            None,
            torch.cat([self.q_proj_bias, self.k_proj_bias, self.v_proj_bias]),
            None,
            None,
            False,
            0.0,
            self.out_proj_weight,
            self.out_proj_bias,
            key_padding_mask=mask,
            average_attn_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight,
        )
        return context, weights.transpose(0, 1)


@pytest.mark.parametrize("name", golden_names("gca", "sub_"))
def test_fusions_match_golden_values(name: str) -> None:
    raw = load_golden("gca", name)
    strategy, fusion = str(raw["meta.strategy"]).replace("_", "-"), str(raw["meta.fusion"])
    layer, heads = int(raw["meta.layer"]), int(raw["meta.num_heads"])
    encoder_layers, decoder_layers = int(raw["meta.Ne"]), int(raw["meta.Nd"])
    golden = {key: torch.from_numpy(value) for key, value in raw.items() if value.dtype.kind in "fb" and value.ndim}

    views = view_schedule(strategy, encoder_layers, decoder_layers, bool(raw["meta.use_global"]))[layer - 1]
    assert views == tuple(raw["views"])
    attention = TorchAttention(golden, "encoder_attn", heads)
    parameters = {}
    for part, parameter in attention.named_parameters():
        parameters["encoder_attn." + part.replace("_weight", ".weight").replace("_bias", ".bias")] = parameter
    second = attention
    if "w.encoder_attn_aux.q_proj.weight" in golden:
        second = TorchAttention(golden, "encoder_attn_aux", heads)
        for part, parameter in second.named_parameters():
            parameters["encoder_attn_aux." + part.replace("_weight", ".weight").replace("_bias", ".bias")] = parameter
    ama_proj = None
    if strategy == "ama":
        ama_proj = nn.Linear(8, 8, bias=False, dtype=torch.float64)
        ama_proj.weight.data.copy_(golden["w.ama_proj.weight"])
        parameters["ama_proj.weight"] = ama_proj.weight
    module = CrossViewFusion(8, views, strategy, fusion, ama_proj).double()
    if module.gate is not None:
        module.gate.data.copy_(golden["w.view_gate"][layer - 1])
    if module.mix is not None:
        module.mix.data.copy_(golden["w.layer_mix"][layer - 1])

    def attend(query: Tensor, memory: Tensor, mask: Tensor | None, slot: int) -> tuple[Tensor, Tensor]:
        return (attention if slot == 0 else second)(query, memory, mask)

    query = golden["h"].requires_grad_()
    states = golden["enc_states"].requires_grad_()
    packed = torch.cat(list(states), dim=-1)
    context, weights = module(attend, query, module.select(packed), golden.get("encoder_padding_mask"))
    torch.testing.assert_close(context, golden["context"], **TOLERANCE)
    torch.testing.assert_close(weights, golden["attn"], **TOLERANCE)

    (context * golden["grad_out"]).sum().backward()
    torch.testing.assert_close(query.grad, golden["grad_h"], **TOLERANCE)
    torch.testing.assert_close(states.grad, golden["grad_enc_states"], **TOLERANCE)
    for key, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, golden[f"gw.{key}"], **TOLERANCE)
    if module.gate is not None:
        torch.testing.assert_close(module.gate.grad, golden["gw.view_gate"][layer - 1], **TOLERANCE)
    if module.mix is not None:
        torch.testing.assert_close(module.mix.grad, golden["gw.layer_mix"][layer - 1], **TOLERANCE)


@given(
    strategy=st.sampled_from([name for name in STRATEGIES if name != "none"]),
    encoder_layers=st.integers(1, 12),
    decoder_layers=st.integers(1, 12),
)
def test_schedules_keep_their_end_points(strategy: str, encoder_layers: int, decoder_layers: int) -> None:
    schedule = view_schedule(strategy, encoder_layers, decoder_layers)
    assert len(schedule) == decoder_layers
    for views in schedule:
        assert len(set(views)) == len(views) and all(1 <= view <= encoder_layers for view in views)
        assert encoder_layers in views
    if strategy in ("gca", "gpa", "fga"):
        assert all(views[0] == encoder_layers for views in schedule)
    if strategy == "gca" and decoder_layers > 1:
        assert schedule[0] == (encoder_layers,) and schedule[-1][-1] == 1
        seconds = [views[-1] for views in schedule]
        assert seconds == sorted(seconds, reverse=True)
        assert seconds == [views[-1] for views in view_schedule("gpa", encoder_layers, decoder_layers)][::-1]


@pytest.mark.parametrize("fusion", ["mean", "gate"])
def test_equal_views_read_like_one(fusion: str) -> None:
    def attend(query: Tensor, memory: Tensor, mask: Tensor | None, slot: int) -> tuple[Tensor, None]:
        return (query @ memory.mean(0).mT) @ memory.mean(0), None

    torch.manual_seed(0)
    query, view = torch.randn(3, 2, 4), torch.randn(5, 2, 4)
    fused, _ = CrossViewFusion(4, (2, 1), "gca", fusion)(attend, query, [view, view])
    torch.testing.assert_close(fused, attend(query, view, None, 0)[0])


def test_each_view_has_its_own_slot() -> None:
    slots = []

    def attend(query: Tensor, memory: Tensor, mask: Tensor | None, slot: int) -> tuple[Tensor, None]:
        slots.append((slot, memory.mean().item()))
        return query, None

    views = [torch.full((2, 1, 4), float(number)) for number in range(3)]
    CrossViewFusion(4, (1, 2, 3), "fma")(attend, torch.zeros(1, 1, 4), views)
    assert slots == [(0, 0.0), (1, 1.0), (2, 2.0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gcaa",), "cross-view strategy must be one of"),
        (("gca", "average"), "cross-view fusion must be one of"),
        (("fma", "gate"), "cross-view fusion 'gate' joins at most two views"),
        (("fma", "separate"), "cross-view fusion 'separate' joins at most two views"),
        (("fma", "sequential"), "cross-view fusion 'sequential' joins at most two views"),
        *(((strategy, "sum"), "does not apply to cross-view") for strategy in ("none", "ama", "ama-static")),
        *(((strategy, "mean", False), "has no global view") for strategy in ("none", "fma", "ama", "ama-static")),
        *((("gca", fusion, False), "needs two views") for fusion in FUSIONS if fusion != "mean"),
    ],
)
def test_meaningless_combinations_are_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_cross_view(*arguments)
    assert "\n" not in str(caught.value)
    if len(arguments) < 3:
        with pytest.raises(ValueError, match=message):
            CrossViewFusion(8, (1, 2), *arguments, ama_proj=nn.Linear(8, 8))


@pytest.mark.parametrize("views", [(), (0,), (2, -1)])
def test_views_are_layers(views: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="views must be encoder layers"):
        CrossViewFusion(8, views)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_fusion_reads_all_views_or_refuses_them(fusion: str) -> None:
    """No view is passed over, and no fusion is silently another one."""

    def attend(query: Tensor, memory: Tensor, mask: Tensor | None, slot: int) -> tuple[Tensor, None]:
        return memory.mean(0).expand_as(query), None

    query, views = torch.zeros(1, 1, 4), [torch.full((2, 1, 4), size, requires_grad=True) for size in (1.0, 2.0, 4.0)]
    for count in (1, 2, 3):
        try:
            fused, _ = CrossViewFusion(4, (3, 2, 1)[:count], "gca", fusion)(attend, query, views[:count])
        except ValueError as refusal:
            assert repr(fusion) in str(refusal) and count > 1
            continue
        assert all(grad.any() for grad in torch.autograd.grad(fused.sum(), views[:count]))


@pytest.mark.parametrize("strategy", ["gca", "gpa", "fga"])
def test_every_other_combination_is_accepted(strategy: str) -> None:
    for fusion in FUSIONS:
        check_cross_view(strategy, fusion)
    check_cross_view(strategy, use_global=False)


def test_a_schedule_needs_layers() -> None:
    with pytest.raises(ValueError, match="layers on both sides, got 0 and 3"):
        view_schedule("gca", 0, 3)


def test_ama_needs_the_shared_projection() -> None:
    with pytest.raises(ValueError, match="ama_proj"):
        CrossViewFusion(8, (1, 2), "ama")


def test_ama_in_half_precision_survives_scores_beyond_its_range() -> None:
    projection = torch.nn.Linear(4, 4).half()
    torch.nn.init.eye_(projection.weight)
    module = CrossViewFusion(4, (1, 2), "ama", ama_proj=projection).half()
    query, views = torch.full((1, 1, 4), 300.0).half(), [torch.full((1, 1, 4), size).half() for size in (400.0, 500.0)]
    context, _ = module(lambda query, memory, mask, slot: (memory, None), query, views)
    torch.testing.assert_close(context, torch.full_like(context, 450.0))  # two scores of +inf share alike


@pytest.mark.parametrize(("queries", "keys"), [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("fusion", ["mean", "concat", "gate"])
def test_no_queries_or_no_keys(fusion: str, queries: int, keys: int) -> None:
    module = CrossViewFusion(4, (1, 2), fusion=fusion)

    def attend(query, memory, mask, slot):
        return query, query.new_zeros(2, 3, queries, memory.size(0))

    context, weights = module(attend, torch.randn(queries, 3, 4), [torch.randn(keys, 3, 4)] * 2)
    assert context.shape == (queries, 3, 4) and weights.shape == (2, 3, queries, keys)


def test_ama_takes_maps_of_another_precision() -> None:
    def attend(query: Tensor, memory: Tensor, mask: Tensor | None, slot: int) -> tuple[Tensor, Tensor]:
        return query, torch.full((2, 1, 3, 5), 0.2)

    projection = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    fusion = CrossViewFusion(4, (1, 2), "ama", ama_proj=projection)
    context, weights = fusion(attend, torch.randn(3, 1, 4, dtype=torch.bfloat16), [torch.zeros(5, 1, 4)] * 2)
    assert context.dtype == torch.bfloat16 and weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 1, 3), rtol=1e-2, atol=1e-2)

"""Attention blocks and the hook: fixtures with gradients, Hugging Face's own attentions, checkpointing, precision."""

from __future__ import annotations

import functools
import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ViltConfig,
    ViltModel,
    VisualBertConfig,
    VisualBertModel,
)
from transformers.models.bert.modeling_bert import BertEncoder

from tests.helpers import golden_names, load_golden
from vision_language.iais.alignment import iais_loss
from vision_language.iais.blocks import AttentionBlocks, attention_blocks
from vision_language.iais.hook import IAISHook

EXACT = dict(rtol=1e-9, atol=1e-9)
SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, vocab_size=30)


class Attention(nn.Module):
    """What the maps need of a self-attention, and nothing else."""

    def __init__(self, hidden_size=12, heads=3):
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, hidden_size // heads
        self.query, self.key = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)


def attention(seed=0, **options):
    torch.manual_seed(seed)
    module = Attention(**options).double()
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.5)
    return module


def case(seed, batch=3, length=10, hidden_size=12):
    """States, and masks of words and regions that lie anywhere in the sequence; none is empty."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, length, hidden_size, generator=generator, dtype=torch.float64)
    kind = torch.randint(3, (batch, length), generator=generator)
    kind[:, 2], kind[:, 7] = 1, 2
    return hidden, kind == 1, kind == 2


def plain(hidden, module, text_mask, region_mask):
    """The definition, a head of a pair at a time."""
    heads, size = module.num_attention_heads, module.attention_head_size
    maps = [[], [], [], []]
    for states, text, region in zip(hidden, text_mask, region_mask, strict=True):
        query, key = (part(states).view(-1, heads, size) for part in (module.query, module.key))
        for actual, (rows, columns) in zip(
            maps, ((text, text), (region, region), (text, region), (region, text)), strict=True
        ):
            per_head = [(query[rows, a] @ key[columns, a].T / size**0.5).softmax(-1) for a in range(heads)]
            actual.append(torch.stack(per_head).mean(0))
    return maps


def real(blocks, name, number):
    """One map of one pair without its padding; the padding is checked."""
    rows, columns = (int({"l": blocks.words, "v": blocks.regions}[part][number]) for part in name)
    block = getattr(blocks, name)[number]
    assert block[rows:].eq(0).all() and block[:, columns:].eq(0).all()
    return block[:rows, :columns]


def encoder(data, implementation="eager"):
    layers, size = int(data["num_layers"]), data["x"].size(-1)
    config = BertConfig(
        hidden_size=size,
        num_hidden_layers=layers,
        num_attention_heads=int(data["num_heads"]),
        intermediate_size=len(data["w.layer.0.intermediate.dense.bias"]),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=implementation,
    )
    module = BertEncoder(config).double()
    module.load_state_dict({key[2:]: value for key, value in data.items() if key.startswith("w.")})
    return module


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", golden_names("iais", "encoder_"))
def test_fixture_maps_losses_and_gradients(name, implementation):
    data = {key: torch.as_tensor(value) for key, value in load_golden("iais", name).items()}
    module = encoder(data, implementation)
    mask = (1 - data["full_mask"][:, None, None].double()) * -10000
    text, region = (torch.zeros_like(data["full_mask"], dtype=torch.bool) for _ in range(2))
    positives = torch.arange(0, len(data["x"]), int(data["pairs_num"]))
    text[positives], region[positives] = data["txt_mask"].bool(), data["img_mask"].bool()
    for modality in ("L", "V"):
        for kind in ("singular", "distributed"):
            x = data["x"].clone().requires_grad_()
            with IAISHook(module) as hook:
                output = module(x, attention_mask=mask).last_hidden_state
                torch.testing.assert_close(hook.hidden, data["hidden_last_in"], **EXACT)
                blocks = hook.blocks(text, region, rows=positives)
            torch.testing.assert_close(output, data["encoder_out"], **EXACT)
            for short in ("ll", "vv", "lv", "vl"):
                expected = data[f"S_{short.upper()}"]
                actual = torch.zeros_like(expected)
                value = getattr(blocks, short)
                actual[:, : value.size(1), : value.size(2)] = value
                torch.testing.assert_close(actual, expected, **EXACT)
            way = f"{modality}_{kind}"
            loss = iais_loss(blocks, kind, modality)
            torch.testing.assert_close(loss, data[f"loss_{way}"], **EXACT)
            last = hook.attention
            parts = {"x": x} | {
                f"{part}.{kind}": getattr(getattr(last, part), kind)
                for part in ("query", "key")
                for kind in ("weight", "bias")
            }
            grads = torch.autograd.grad(loss, list(parts.values()))
            torch.testing.assert_close(grads[0], data[f"grad_x_{way}"], **EXACT)
            for key, grad in list(zip(parts, grads, strict=True))[1:]:
                torch.testing.assert_close(grad, data[f"grad_{way}_{key}"], **EXACT)


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_definition(seed, batch):
    module, inputs = attention(seed % 7), case(seed, batch)
    blocks = attention_blocks(inputs[0], module, *inputs[1:])
    for name, maps in zip(("ll", "vv", "lv", "vl"), plain(inputs[0], module, *inputs[1:]), strict=True):
        for number, expected in enumerate(maps):
            actual = real(blocks, name, number)
            torch.testing.assert_close(actual, expected)
            torch.testing.assert_close(actual.sum(-1), torch.ones(len(actual), dtype=actual.dtype))


@given(st.integers(0, 10**6))
def test_padding_and_batch_change_nothing(seed):
    hidden, text, region = case(seed)
    module = attention()
    blocks = attention_blocks(hidden, module, text, region)
    other = ~(text | region)
    hidden[other] = 1e3 * torch.randn_like(hidden[other])
    longer = [
        nn.functional.pad(value, (0, 0, 2, 4) if value.dim() == 3 else (2, 4)) for value in (hidden, text, region)
    ]
    for number in range(len(hidden)):
        one = attention_blocks(longer[0][number, None], module, longer[1][number, None], longer[2][number, None])
        for name in ("ll", "vv", "lv", "vl"):
            torch.testing.assert_close(getattr(one, name)[0], real(blocks, name, number))


@given(st.integers(0, 10**6))
def test_order_of_regions_permutes_the_maps(seed):
    hidden, text, region = case(seed, batch=1)
    module = attention()
    blocks = attention_blocks(hidden, module, text, region)
    place = region[0].nonzero().view(-1)
    order = torch.randperm(len(place), generator=torch.Generator().manual_seed(seed))
    shuffled = hidden.clone()
    shuffled[0, place] = hidden[0, place[order]]
    moved = attention_blocks(shuffled, module, text, region)
    torch.testing.assert_close(moved.ll, blocks.ll)
    torch.testing.assert_close(moved.vv, blocks.vv[:, order][:, :, order])
    torch.testing.assert_close(moved.lv, blocks.lv[:, :, order])
    torch.testing.assert_close(moved.vl, blocks.vl[:, order])
    for kind in ("singular", "distributed"):
        torch.testing.assert_close(iais_loss(moved, kind), iais_loss(blocks, kind))


def test_kept_scores_are_those_of_the_maps():
    hidden, text, region = case(2)
    module = attention()
    assert attention_blocks(hidden, module, text, region).scores is None
    blocks = attention_blocks(hidden, module, text, region, keep_scores=True)
    for scores, name, count in zip(blocks.scores, ("ll", "vv"), (blocks.words, blocks.regions), strict=True):
        for number, width in enumerate(count):
            expected = scores[number, :, :width, :width].softmax(-1).mean(0)
            torch.testing.assert_close(real(blocks, name, number), expected)
    assert iais_loss(blocks, pseudo_norm="softmax_scores") > 0


@pytest.mark.parametrize("empty", ["text", "region", "both"])
def test_a_modality_without_positions(empty):
    hidden, text, region = case(3)
    hidden.requires_grad_()
    if empty != "region":
        text[:] = False
    if empty != "text":
        region[:] = False
    blocks = attention_blocks(hidden, attention(), text, region)
    assert blocks.lv.eq(0).all() and blocks.vl.eq(0).all()
    for kind in ("singular", "distributed"):
        loss = iais_loss(blocks, kind)
        assert loss == 0 and torch.autograd.grad(loss, hidden, retain_graph=True)[0].eq(0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 3e-3)])
def test_low_precision(dtype, tolerance):
    hidden, text, region = case(4)
    module = attention()
    expected = attention_blocks(hidden, module, text, region)
    blocks = attention_blocks(hidden.to(dtype), module.to(dtype), text, region)
    for actual, wanted in zip(blocks[:4], expected[:4], strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, wanted.float(), rtol=0, atol=tolerance)
    rows = blocks.ll.sum(-1)
    torch.testing.assert_close(rows[rows > 0], torch.ones_like(rows[rows > 0]))


def test_scores_beyond_float16_are_those_of_their_products():
    hidden, text, region = case(4)
    module = attention().half()
    with torch.no_grad():
        blocks = attention_blocks(300 * hidden.half(), module, text, region)
        query, key = (part(300 * hidden.half()) for part in (module.query, module.key))
    assert (query.double() @ key.double().mT).abs().max() > torch.finfo(torch.float16).max
    assert all(maps.isfinite().all() for maps in blocks[:4])


@pytest.mark.parametrize("name", ["text_mask", "region_mask"])
def test_mask_of_another_length(name):
    hidden, text, region = case(5)
    masks = {"text_mask": text, "region_mask": region} | {name: text[:, :-1]}
    with pytest.raises(ValueError, match=rf"{name} must have the shape of the sequences, \(3, 10\), got \(3, 9\)"):
        attention_blocks(hidden, attention(), **masks)


def bert(implementation, **options):
    """BERT over six words, then four positions in the role of regions."""
    model = BertModel(BertConfig(**SMALL, attn_implementation=implementation, **options))
    lengths = torch.tensor([[10], [9]])
    inputs = {
        "input_ids": torch.randint(30, (2, 10)),
        "attention_mask": (torch.arange(10) < lengths).long(),
    }
    positions = torch.arange(10).expand(2, 10)
    text = (positions >= 1) & (positions < torch.tensor([[5], [4]]))
    return model, inputs, text, (positions >= 6) & (positions < lengths)


def visual_bert(implementation):
    config = VisualBertConfig(**SMALL, visual_embedding_dim=5, attn_implementation=implementation)
    inputs = {
        "input_ids": torch.randint(30, (2, 6)),
        "attention_mask": torch.tensor([[1] * 6, [1] * 5 + [0]]),
        "visual_embeds": torch.randn(2, 4, 5),
        "visual_attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]]),
        "visual_token_type_ids": torch.ones(2, 4, dtype=torch.long),
    }
    text = torch.tensor([[0, 1, 1, 1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0, 0, 0]]).bool()
    region = torch.tensor([[0] * 6 + [1] * 4, [0] * 6 + [1, 1, 1, 0]]).bool()
    return VisualBertModel(config), inputs, text, region


def vilt(implementation):
    config = ViltConfig(**SMALL, image_size=8, patch_size=4, attn_implementation=implementation)
    inputs = {
        "input_ids": torch.randint(30, (2, 6)),
        "attention_mask": torch.tensor([[1] * 6, [1] * 5 + [0]]),
        "pixel_values": torch.randn(2, 3, 8, 8),
        "pixel_mask": torch.ones(2, 8, 8, dtype=torch.long),
    }
    text = torch.tensor([[0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]]).bool()
    region = torch.tensor([[0] * 7 + [1] * 4] * 2).bool()
    return ViltModel(config), inputs, text, region


MODELS = {"bert": bert, "visual_bert": visual_bert, "vilt": vilt}


def build(name, implementation="eager", **options):
    torch.manual_seed(0)
    model, inputs, text, region = MODELS[name](implementation, **options)
    for key, weight in model.named_parameters():
        if "query" in key or "key" in key:
            nn.init.normal_(weight, std=0.4)  # maps that are far from uniform
    return model, inputs, text, region


def run(model, inputs, **options):
    """A forward pass; ViLT draws the order of its patches at each."""
    torch.manual_seed(1)
    return model(**inputs, **options)


def renormalised(probabilities, text, region):
    """The block of each pair and head out of probabilities over the whole sequence, averaged over heads."""
    maps = []
    for rows, columns in ((text, text), (region, region), (text, region), (region, text)):
        actual = []
        for one, row, column in zip(probabilities, rows, columns, strict=True):
            block = one[:, row][:, :, column]
            actual.append((block / block.sum(-1, keepdim=True)).mean(0))
        maps.append(actual)
    return maps


@pytest.mark.parametrize(
    ("name", "implementation"), [("bert", "eager"), ("bert", "sdpa"), ("visual_bert", "eager"), ("vilt", "eager")]
)
def test_hook_equals_the_attentions_of_hugging_face(name, implementation):
    model, inputs, text, region = build(name)
    attentions = run(model.eval(), inputs, output_attentions=True).attentions[-1].detach()
    hooked = build(name, implementation)[0]
    assert hooked.config._attn_implementation == implementation
    with IAISHook(hooked) as hook:
        run(hooked.eval(), inputs)
        blocks = hook.blocks(text, region)
    for short, maps in zip(("ll", "vv", "lv", "vl"), renormalised(attentions, text, region), strict=True):
        for number, expected in enumerate(maps):
            torch.testing.assert_close(real(blocks, short, number), expected, rtol=1e-4, atol=1e-5)
    assert blocks.lv.std() > 0.1


@pytest.mark.parametrize("name", MODELS)
def test_dropout_of_probabilities_does_not_touch_the_maps(name):
    model, inputs, text, region = build(name)
    with IAISHook(model.train()) as hook:
        run(model, inputs)
        blocks = hook.blocks(text, region)
    rows = blocks.ll.sum(-1)[torch.arange(blocks.ll.size(1)) < blocks.words[:, None]]
    torch.testing.assert_close(rows, torch.ones_like(rows))


@pytest.mark.parametrize("name", MODELS)
def test_rows_choose_pairs(name):
    model, inputs, text, region = build(name)
    with IAISHook(model.eval()) as hook:
        run(model, inputs)
        everything = hook.blocks(text, region)
        run(model, inputs)
        second = hook.blocks(text, region, rows=torch.tensor([1]))
    for short in ("ll", "vv", "lv", "vl"):
        torch.testing.assert_close(real(second, short, 0), real(everything, short, 1))


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_without_matched_pairs_adds_nothing(name):
    model, inputs, text, region = build(name)
    with IAISHook(model.eval()) as hook:
        run(model, inputs)
        blocks = hook.blocks(text, region, rows=torch.zeros(len(text), dtype=torch.bool))
    assert len(blocks.words) == 0 and iais_loss(blocks) == 0
    iais_loss(blocks).backward()


def gradients(name, use_reentrant=None, wrap=None):
    model, inputs, text, region = build(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.train()
    if use_reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    hook = IAISHook(model)
    runner = model if wrap is None else wrap(model)
    output = run(runner, inputs)
    loss = iais_loss(hook.blocks(text, region)) + output.last_hidden_state.square().mean()
    loss.backward()
    return hook, {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(name, use_reentrant):
    if use_reentrant and name == "vilt":
        with pytest.raises(RuntimeError, match="gradient checkpointing needs use_reentrant=False"):
            gradients(name, use_reentrant)
        return
    expected = gradients(name)[1]
    hook, actual = gradients(name, use_reentrant)
    assert hook.hidden is None  # the second run of the layer, inside backward, leaves nothing behind
    assert actual.keys() == expected.keys()
    for key, grad in expected.items():
        torch.testing.assert_close(actual[key], grad, rtol=1e-4, atol=1e-6)


def test_distributed_data_parallel(tmp_path):
    expected = gradients("bert")[1]
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrap = functools.partial(nn.parallel.DistributedDataParallel, find_unused_parameters=True)
        actual = gradients("bert", wrap=wrap)[1]
    finally:
        torch.distributed.destroy_process_group()
    for key, grad in expected.items():
        torch.testing.assert_close(actual[key], grad)


@pytest.mark.parametrize("name", MODELS)
def test_autocast(name):
    model, inputs, text, region = build(name)
    model.eval()
    with IAISHook(model) as hook:
        run(model, inputs)
        expected = hook.blocks(text, region)
        with torch.autocast("cpu", torch.bfloat16):
            run(model, inputs)
            blocks = hook.blocks(text, region)
            loss = iais_loss(blocks)
    assert blocks.ll.dtype == loss.dtype == torch.float32
    for actual, wanted in zip(blocks[:4], expected[:4], strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0.05)
    loss.backward()
    assert hook.attention.query.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", MODELS)
def test_detach_leaves_nothing(name):
    model, inputs, *_ = build(name)
    modules = list(model.modules())
    with IAISHook(model) as hook:
        assert any(module._forward_pre_hooks for module in modules)
        run(model, inputs)
        assert hook.hidden is not None
    assert hook.hidden is None
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in modules)
    run(model, inputs)
    assert hook.hidden is None


def test_blocks_let_the_graph_go():
    model, inputs, text, region = build("bert")
    hook = IAISHook(model)
    run(model, inputs)
    hidden = weakref.ref(hook.hidden)
    hook.blocks(text, region)
    gc.collect()
    assert hidden() is None
    with pytest.raises(RuntimeError, match="IAISHook: the model has not run since the last blocks"):
        hook.blocks(text, region)


def test_hook_takes_the_self_attention_itself():
    model, inputs, text, region = build("bert")
    last = model.encoder.layer[-1].attention.self
    model.eval()
    with IAISHook(last) as hook, IAISHook(model) as whole:
        assert hook.attention is whole.attention is last
        run(model, inputs)
        torch.testing.assert_close(hook.blocks(text, region), whole.blocks(text, region))


def test_cross_attention_is_refused():
    model = build("bert", is_decoder=True, add_cross_attention=True)[0]
    with pytest.raises(ValueError, match=r"BertModel has encoder.layer.0.crossattention.self \(BertCrossAttention\)"):
        IAISHook(model)


def test_model_without_such_an_attention():
    model = DistilBertModel(DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=30))
    with pytest.raises(ValueError, match="IAISHook: DistilBertModel has no self-attention with query, key, num"):
        IAISHook(model)


def test_blocks_unpack_and_swap():
    hidden, text, region = case(6)
    blocks = attention_blocks(hidden, attention(), text, region, keep_scores=True)
    other = attention_blocks(hidden, attention(), region, text, keep_scores=True)
    assert isinstance(blocks, AttentionBlocks)
    for actual, expected in zip(blocks.swapped(), other, strict=True):
        torch.testing.assert_close(actual, expected)

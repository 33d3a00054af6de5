"""AdaNorm and its siblings in models that were made with other norms."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from fairseq_ext.integrations import replace_norms
from fairseq_ext.modules import AdaNorm, DetachNorm, LayerNormSimple
from fairseq_ext.training.errors import OptionError

SIZES = {
    **{"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32},
    **{"max_position_embeddings": 32},
}
CLASSES = {"adanorm": AdaNorm, "layernorm-simple": LayerNormSimple, "detachnorm": DetachNorm}


def bert():
    return transformers.BertModel(transformers.BertConfig(**SIZES)).eval()


@pytest.mark.parametrize("norm", CLASSES)
def test_every_layer_norm_is_replaced_after_a_dry_run_that_changes_nothing(norm):
    model = bert()
    before = {name: type(module) for name, module in model.named_modules()}
    planned = replace_norms(model, norm, dry_run=True)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert replace_norms(model, norm) == planned
    now = dict(model.named_modules())
    names = [name for name, kind in before.items() if kind is nn.LayerNorm]
    assert [change.names for change in planned] == [(name,) for name in names] and len(names) == 5
    assert {type(now[name]) for name in names} == {CLASSES[norm]}
    assert planned[0][1:] == ("LayerNorm", (16,), repr(CLASSES[norm](16)), ("weight", "bias"), False)
    assert not [key for key in model.state_dict() if "LayerNorm" in key]
    model(torch.tensor([[3, 4, 5]])).last_hidden_state.sum().backward()


def test_without_gain_the_simple_norm_is_torchs_own():
    model, ids = bert(), torch.tensor([[3, 4, 5]])
    expected = model(ids).last_hidden_state
    replace_norms(model, "layernorm-simple", unbiased=False, eps=None)
    torch.testing.assert_close(model(ids).last_hidden_state, expected)


def test_a_saved_model_is_loaded_and_replaced_again(tmp_path):
    model, ids = bert(), torch.tensor([[3, 4, 5]])
    replace_norms(model, "adanorm", scale=2.0)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path).eval()
    replace_norms(again, "adanorm", scale=2.0)
    assert torch.equal(again(ids).last_hidden_state, model(ids).last_hidden_state)
    plain = bert()
    replace_norms(plain, "adanorm", scale=2.0)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(ids).last_hidden_state, model(ids).last_hidden_state)


@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_transformer_computes_the_same_fused_or_not(norm_first):
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16), enable_nested_tensor=not norm_first).eval()
    assert len(replace_norms(model, "adanorm")) == 5
    x, padding = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    expected = model(x, src_key_padding_mask=padding)
    with torch.no_grad():
        torch.testing.assert_close(model(x, src_key_padding_mask=padding), expected)


def test_a_shared_norm_stays_shared_and_only_what_is_named_is_replaced():
    model = nn.ModuleDict({"a": nn.LayerNorm(8), "b": nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))})
    model["c"] = model["a"]
    with torch.no_grad():
        model["a"].weight[0] = 3
    (change,) = replace_norms(model, names=["c"])
    assert (change.names, change.trained) == (("a", "c"), True)
    assert model["a"] is model["c"] and isinstance(model["a"], AdaNorm) and isinstance(model["b"][1], nn.LayerNorm)
    (change,) = replace_norms(model.train(), "detachnorm", detach="std")
    assert (change.names, change.trained) == (("b.1",), False) and model["b"][1].detach == "std"


RMS = {
    "llama": (transformers.LlamaConfig, "LlamaRMSNorm", 5),
    "gemma": (transformers.GemmaConfig, "GemmaRMSNorm", 5),
}


@pytest.mark.parametrize("family", RMS)
def test_rms_norms_are_replaced_on_request(family):
    config, name, number = RMS[family]
    model = transformers.AutoModel.from_config(config(**SIZES, num_key_value_heads=2, head_dim=4))
    with pytest.raises(OptionError, match="need rms_norms=True"):
        replace_norms(model)
    changes = replace_norms(model, rms_norms=True)
    assert {change[1:] for change in changes} == {(name, (16,), repr(AdaNorm(16)), ("weight",), False)}
    assert len(changes) == number
    model(torch.tensor([[3, 4, 5]])).last_hidden_state.sum().backward()


def test_t5_and_torchs_rms_norm_too():
    sizes = {"vocab_size": 30, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = transformers.T5Model(transformers.T5Config(**sizes))
    assert {change.replaced for change in replace_norms(model, rms_norms=True)} == {"T5LayerNorm"}
    model = nn.Sequential(nn.RMSNorm(4, eps=1e-3), nn.LayerNorm(4))
    changes = replace_norms(model, "layernorm-simple", rms_norms=True, eps=None, dry_run=True)
    assert [change.by.split("eps=")[1][:5] for change in changes] == ["0.001", "1e-05"]


class ChannelsFirst(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.transpose(1, -1)).transpose(1, -1)


def test_patterns_choose_norms_and_leave_others():
    model = nn.Sequential(ChannelsFirst(8), nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(8)), nn.LayerNorm(8))
    assert [change.names for change in replace_norms(model, names="1.*", dry_run=True)] == [("1.0",), ("1.1",)]
    changes = replace_norms(model, skip=["0", "1.1"])
    assert [change.names for change in changes] == [("1.0",), ("2",)]
    assert isinstance(model[0], ChannelsFirst) and isinstance(model[1][1], nn.LayerNorm)


class GatedRMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), 1e-5

    def forward(self, x, gate):
        return x * gate * self.weight


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Linear(2, 2), {}, "Linear has no LayerNorm"),
        (nn.LayerNorm(4), {}, "LayerNorm has no LayerNorm to replace"),
        (nn.Sequential(nn.LayerNorm(4)), {"norm": "adanrom"}, "norm: 'adanrom' .*did you mean 'adanorm'"),
        (nn.Sequential(nn.LayerNorm(4)), {"norm": "layernorm"}, "norm: 'layernorm' is not one of"),
        (
            nn.Sequential(nn.LayerNorm(4)),
            {"norm": "layernorm-simple", "scale": 2.0},
            "option of layernorm-simple: 'scale'",
        ),
        (nn.Sequential(nn.LayerNorm(4)), {"k": float("nan")}, "0: k must be finite"),
        (nn.Sequential(nn.LayerNorm(4)), {"names": ["1"]}, "names: '1'"),
        (nn.Sequential(nn.LayerNorm(4)), {"skip": ["layer.*"]}, "skip: 'layer"),
        (nn.Sequential(nn.LayerNorm(4)), {"skip": ["0"]}, "no LayerNorm to replace"),
        (nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(1)), {}, "1: normalized_shape must have at least 2"),
        (nn.Sequential(nn.LayerNorm(4), ChannelsFirst(8)), {}, "1: ChannelsFirst is no plain norm"),
        (nn.Sequential(nn.LayerNorm(4), GatedRMSNorm(8)), {"rms_norms": True}, "1: GatedRMSNorm is no plain norm"),
    ],
)
def test_what_cannot_be_replaced_is_refused_by_name_and_nothing_changes(model, options, message):
    before = repr(model)
    with pytest.raises(OptionError, match=message) as error:
        replace_norms(model, **options)
    assert repr(model) == before and "\n" not in str(error.value)


class Reader(nn.Module):
    """As Mamba's layers, which read the dtype."""

    def __init__(self):
        super().__init__()
        self.norm, self.own = nn.LayerNorm(4), nn.LayerNorm(4)

    def forward(self, x):
        return self.own(self.norm(x.to(self.norm.weight.dtype)))


def hooked():
    model = nn.Sequential(nn.LayerNorm(4))
    model[0].register_forward_pre_hook(lambda module, inputs: None)
    return model


def wrapped():
    model = nn.Sequential(nn.LayerNorm(4))
    model[0].forward = lambda x: x
    return model


def mamba():
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    return transformers.MambaModel(transformers.MambaConfig(**sizes))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(Reader()), "0.norm: Reader reads its weight"),
        (mamba, r"layers.0.norm: MambaBlock reads its weight"),
        (hooked, "0: has forward_pre_hooks"),
        (wrapped, "0: has a forward of its own"),
        (lambda: nn.Sequential(nn.LayerNorm(4, device="meta")), "0: is on the meta device; load its weights"),
        (lambda: nn.Sequential(nn.RMSNorm(4, device="meta")), "0: is on the meta device"),
    ],
)
def test_a_norm_that_is_more_than_what_it_computes_is_refused_by_name(make, message):
    model = make()
    before = repr(model)
    with pytest.raises(OptionError, match=f"{message}.*; skip= leaves it as it is") as error:
        replace_norms(model, rms_norms=True)
    assert repr(model) == before and "\n" not in str(error.value)


def test_what_a_model_reads_of_one_norm_leaves_the_others():
    (change,) = replace_norms(Reader(), skip=["norm"])
    assert change.names == ("own",)

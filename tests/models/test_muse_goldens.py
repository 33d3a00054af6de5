"""The MUSE layers and models against the fixtures in tests/golden/muse: forward, attention maps and gradients."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from torch import Tensor, nn

from fairseq_ext.models.config import TransformerExtConfig, nested_config
from fairseq_ext.models.fused import fuse_for_inference
from fairseq_ext.models.fused_muse import FusedMuseDecoderLayer, FusedMuseEncoderLayer
from fairseq_ext.models.muse_layers import MuseDecoderLayer, MuseEncoderLayer
from fairseq_ext.models.transformer import TransformerExtModel
from tests.helpers import golden_files, golden_names, load_golden

MANIFEST = {name: entry["config"] for name, entry in json.loads(golden_files("muse")["manifest.json"]).items()}
# the fixtures were made with a float32 softmax inside a float64 computation
TOLERANCE = {"atol": 3e-6, "rtol": 1e-5}


def load(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return MANIFEST[name], {key: torch.from_numpy(array) for key, array in load_golden("muse", name).items()}


def part(data: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}


def translate(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The fixtures' parameter names (stacked q, k, v) to ours."""
    renamed = {}
    for key, value in weights.items():
        if "in_proj_" in key:
            for letter, block in zip("qkv", value.chunk(3), strict=True):
                renamed[key.replace("in_proj_", f"{letter}_proj.")] = block
        else:
            key = key.replace("self_attn.dynamics.", "self_attn.conv.convs.")
            renamed[key.replace("dynamic_gate_para", "conv.gate.weight")] = value
    return renamed


def unmerge(weights: dict[str, Tensor], config: dict[str, Any], width: int) -> dict[str, Tensor]:
    """A merged layer's parameters to those of a layer with separate branches, which exists for every merged layer."""
    encoder = "self_attn.fc1.weight" in weights
    prefix = "self_attn." if encoder else ""
    w1, b1 = weights[f"{prefix}fc1.weight"], weights[f"{prefix}fc1.bias"]
    w2, b2 = weights[f"{prefix}fc2.weight"], weights[f"{prefix}fc2.bias"]
    own = width * (2 if "self_attn.dynamic.weight_linear.weight" in weights else 1)
    result = {
        "self_attn.in_proj_weight": w1[: 3 * width],
        "self_attn.in_proj_bias": b1[: 3 * width],
        "self_attn.out_proj.weight": w2[:, :own],
        "self_attn.out_proj.bias": torch.zeros_like(b2),
        "fc2.bias": b2,
        "self_attn_layer_norm.weight": weights["layer_norm.weight"],
        "self_attn_layer_norm.bias": weights["layer_norm.bias"],
    }
    if own > width:
        result["self_attn.dynamics.0.weight_linear.weight"] = weights["self_attn.dynamic.weight_linear.weight"]
        result["self_attn.dynamic_gate_para"] = torch.ones(1, dtype=w1.dtype)
    rows, columns = 3 * width, own
    if not encoder:
        if "fc3.weight" in weights:
            query, query_bias = weights["fc3.weight"], weights["fc3.bias"]
        else:
            query, query_bias = w1[rows : rows + width], b1[rows : rows + width]
            rows += width
        if "fc4.weight" in weights:
            out, out_bias = weights["fc4.weight"], weights["fc4.bias"]
        else:
            out, out_bias = w2[:, columns : columns + width], torch.zeros_like(b2)
            columns += width
        result["encoder_attn.in_proj_weight"] = torch.cat([query, weights["encoder_attn.kv_fc.weight"]])
        result["encoder_attn.in_proj_bias"] = torch.cat([query_bias, weights["encoder_attn.kv_fc.bias"]])
        result["encoder_attn.out_proj.weight"], result["encoder_attn.out_proj.bias"] = out, out_bias
    result.update({"fc1.weight": w1[rows:], "fc1.bias": b1[rows:], "fc2.weight": w2[:, columns:]})
    return result


def kernels_of(config: dict[str, Any]) -> list[int]:
    if config["attn_dynamic_type"] == 2 and not config["kernel_size"]:
        return config["attn_wide_kernels"]
    if config["kernel_size"]:
        return [config["kernel_size"]]
    return [config["dynamic_depth_kernels"][config["layer_id"]]] if config["attn_dynamic_type"] == 1 else []


def layer_of(config: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """The layer of a fixture, in float64, carrying ``weights``."""
    flat = TransformerExtConfig()
    for side in ("encoder", "decoder"):
        setattr(flat, f"{side}_embed_dim", config["embed_dim"])
        setattr(flat, f"{side}_ffn_embed_dim", config["ffn_dim"])
        setattr(flat, f"{side}_attention_heads", config["heads"])
        setattr(flat, f"{side}_normalize_before", config["normalize_before"])
    for name in ("dropout", "attention_dropout", "activation_dropout", "activation_fn"):
        setattr(flat, name, config[name])
    kernels = kernels_of(config)
    flat.block = "muse" if kernels else "muse-simple"
    flat.muse_kernels = ",".join(map(str, kernels or [3]))
    flat.muse_no_gate = not config["dynamic_gate"]
    flat.muse_no_padding_mask = not config["dynamic_padding"]
    flat.muse_input_dropout = config["input_dropout"]
    kind = MuseDecoderLayer if "decoder" in config["kind"] else MuseEncoderLayer
    layer = kind(nested_config(flat), 1).double()
    layer.load_state_dict(translate(weights))
    return layer.train(config.get("training", False))


def run(layer: nn.Module, data: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Output and attention map of a layer on the inputs of a fixture, full sequence."""
    if "enc_out" not in data:
        mask = data.get("pad_mask")
        return layer(data["x"], None if mask is None else mask.bool()), None
    mask = data.get("enc_pad_mask")
    length = data["x"].size(0)
    causal = torch.full((length, length), float("-inf"), dtype=torch.float64).triu(1)
    out, attn, _ = layer(
        data["x"], data["enc_out"], None if mask is None else mask.bool(), self_attn_mask=causal, need_attn=True
    )
    return out, attn


def check_map(weights: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(weights.double(), expected, **TOLERANCE)  # fairseq returns float32 maps


def check_gradients(layer: nn.Module, out: Tensor, data: dict[str, Tensor]) -> None:
    (out * data["grad_out"]).sum().backward()
    expected = translate(part(data, "g."))
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    assert expected.keys() == gradients.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            gradients[name], gradient, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )
    check_input_gradients(data)


def check_input_gradients(data: dict[str, Tensor]) -> None:
    for name in ("x", "enc_out"):
        if f"g_{name}" in data:
            torch.testing.assert_close(data[name].grad, data[f"g_{name}"], **TOLERANCE)


def require_input_gradients(data: dict[str, Tensor]) -> None:
    for name in ("x", "enc_out"):
        if name in data:
            data[name].requires_grad_()


@pytest.mark.parametrize("name", golden_names("muse", "enc_") + golden_names("muse", "dec_"))
def test_layer(name: str) -> None:
    config, data = load(name)
    require_input_gradients(data)
    layer = layer_of(config, part(data, "w."))
    out, attn = run(layer, data)
    torch.testing.assert_close(out, data["out"], **TOLERANCE)
    if attn is not None:
        check_map(attn, data["attn"])
    check_gradients(layer, out, data)


@pytest.mark.parametrize("name", golden_names("muse", "enc_") + golden_names("muse", "dec_"))
def test_fused_layer(name: str) -> None:
    config, data = load(name)
    require_input_gradients(data)
    (layer,) = fuse_for_inference(nn.ModuleList([layer_of(config, part(data, "w."))]))
    assert isinstance(layer, FusedMuseEncoderLayer | FusedMuseDecoderLayer)
    out, attn = run(layer, data)
    torch.testing.assert_close(out, data["out"], **TOLERANCE)
    if attn is not None:
        check_map(attn, data["attn"])
    (out * data["grad_out"]).sum().backward()
    check_input_gradients(data)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", golden_names("muse", "decinc_"))
def test_step_by_step(name: str, fused: bool) -> None:
    config, data = load(name)
    layer = layer_of(config, part(data, "w."))
    if fused:
        layer = FusedMuseDecoderLayer(layer)
    if "out_full" in data:
        torch.testing.assert_close(run(layer, data)[0], data["out_full"], **TOLERANCE)
    memory, mask = data["enc_out"], data.get("enc_pad_mask")
    mask = None if mask is None else mask.bool()
    orders = {}
    if "reorder_steps" in data:
        orders = dict(zip(data["reorder_steps"].tolist(), data["reorder_orders"], strict=True))
    state: dict[str, Any] = {}
    outputs, maps = [], []
    for step, x in enumerate(data["x"].split(1)):
        if step in orders:
            order = orders[step]
            # beam search moves hypotheses within their sentence and fairseq leaves the encoder's keys in place, but
            # the fixture exchanges sentences; fused layers can
            for module in layer.modules():
                if hasattr(module, "reorder_incremental_state"):
                    module.reorder_incremental_state(state, order)
            if not fused:
                reorder_memory(layer.encoder_attn, state, order)
            memory, mask = memory[:, order], None if mask is None else mask[order]
        with torch.no_grad():
            out, attn, _ = layer(x, memory, mask, state, need_attn=True)
        outputs.append(out)
        maps.append(attn)
    torch.testing.assert_close(torch.cat(outputs), data["out_steps"], **TOLERANCE)
    check_map(torch.cat(maps, dim=1), data["attn_steps"])
    check_caches(layer, state, part(data, "state."))


def reorder_memory(attention: nn.Module, state: dict[str, Any], order: Tensor) -> None:
    saved = attention.get_incremental_state(state, "attn_state")
    reordered = {key: cache if cache is None else cache.index_select(0, order) for key, cache in saved.items()}
    attention.set_incremental_state(state, "attn_state", reordered)


def check_caches(layer: nn.Module, state: dict[str, Any], expected: dict[str, Tensor]) -> None:
    caches = {}
    if isinstance(layer, FusedMuseDecoderLayer):
        generation = layer.cache.get_incremental_state(state, "generation")["state"]
        prefix = generation.prefixes[layer.cache_number].items
        key, value = prefix.unflatten(-1, (layer.num_heads, -1)).permute(1, 2, 3, 0, 4)
        memory = layer.cache.memory(state, layer.cache_number)
        caches = {"self_attn.prev_key": key, "self_attn.prev_value": value}
        caches |= {"encoder_attn.prev_key": memory[0], "encoder_attn.prev_value": memory[1]}
    else:
        for module in ("self_attn", "encoder_attn"):
            saved = getattr(layer, module).get_incremental_state(state, "attn_state")
            caches |= {f"{module}.{key}": saved[key] for key in ("prev_key", "prev_value")}
        buffers = layer.self_attn.get_incremental_state(state, "conv_state") or {}
        caches |= {f"conv.{index}": buffer[None] for index, buffer in buffers.items()}
        assert {key for key in expected if key.startswith("conv.")} <= caches.keys()
    for key in caches.keys() & expected.keys():
        torch.testing.assert_close(caches[key], expected[key], **TOLERANCE)


@pytest.mark.parametrize("source", ["unmerged", "merged"])
@pytest.mark.parametrize("name", golden_names("muse", "bm_"))
def test_merged_layer(name: str, source: str) -> None:
    """Layers that were merged from the start equal our fused ones, from either form of their weights."""
    config, data = load(name)
    require_input_gradients(data)
    if source == "unmerged":
        weights = part(data, "u.")
    else:
        weights = unmerge(part(data, "w."), config, config["embed_dim"])
    layer = layer_of(config, weights)
    kind = FusedMuseDecoderLayer if isinstance(layer, MuseDecoderLayer) else FusedMuseEncoderLayer
    for candidate in (layer, kind(layer)):
        for key in ("x", "enc_out"):
            if key in data:
                data[key].grad = None
        out, attn = run(candidate, data)
        torch.testing.assert_close(out, data["out"], **TOLERANCE)
        if attn is not None:
            check_map(attn, data["attn"])
        (out * data["grad_out"]).sum().backward()
        check_input_gradients(data)


def test_the_matrices_are_those_of_a_merged_layer() -> None:
    config, data = load("bm_dec_fc3_0_fc4_0")
    fused = FusedMuseDecoderLayer(layer_of(config, part(data, "u.")))
    for name, linear in {"fc1": fused.in_proj, "fc2": fused.out_proj, "encoder_attn.kv_fc": fused.memory_proj}.items():
        torch.testing.assert_close(linear.weight, data[f"w.{name}.weight"])
        torch.testing.assert_close(linear.bias, data[f"w.{name}.bias"])


@pytest.mark.parametrize("name", [name for name in golden_names("muse", "probe_") if "_bm_" not in name])
def test_every_dropout_sits_in_its_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout replaced by a multiplication by 1 - p, the output tells where it is applied, and with which p."""

    def scale(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return x * (1 - p) if training else x

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, dropout_p: float, *rest: Any) -> Tensor:
        scores = query @ key.transpose(-2, -1) / query.size(-1) ** 0.5
        return (scores if attn_mask is None else scores + attn_mask).softmax(-1) * (1 - dropout_p) @ value

    monkeypatch.setattr(F, "dropout", scale)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    config, data = load(name)
    require_input_gradients(data)
    layer = layer_of(config, part(data, "w."))
    out, _ = run(layer, data)
    torch.testing.assert_close(out, data["out"], **TOLERANCE)
    check_gradients(layer, out, data)


def model_of(config: dict[str, Any], data: dict[str, Tensor]) -> TransformerExtModel:
    flat = TransformerExtConfig()
    for side in ("encoder", "decoder"):
        setattr(flat, f"{side}_embed_dim", config["C"])
        setattr(flat, f"{side}_ffn_embed_dim", config["FF"])
        setattr(flat, f"{side}_attention_heads", config["H"])
        setattr(flat, f"{side}_layers", config["layers"])
        setattr(flat, f"{side}_normalize_before", config["pre"])
    flat.dropout = 0.0
    flat.block = "muse" if config["kernels"] else "muse-simple"
    if config["kernels"]:
        flat.muse_kernels = config["kernels"].strip("[]")
        flat.muse_no_padding_mask = True
    flat.share_all_embeddings = config["share"]
    flat.max_source_positions = flat.max_target_positions = 1024
    source, target = (dictionary(config[f"{side}_vocab"]) for side in ("src", "tgt"))
    task = SimpleNamespace(source_dictionary=source, target_dictionary=source if config["share"] else target)
    model = TransformerExtModel.build_model(flat, task).double().eval()
    model.load_state_dict(model_weights(config, part(data, "w."), model), strict=True)
    return model


def dictionary(size: int) -> Dictionary:
    symbols = Dictionary()
    for index in range(size - len(symbols)):
        symbols.add_symbol(f"w{index}")
    return symbols


def model_weights(config: dict[str, Any], weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    result, merged = {}, {}
    for key, value in weights.items():
        if ".layers." in key and "layer_norm" not in key.split(".layers.")[0]:
            side, rest = key.split(".layers.")
            index, name = rest.split(".", 1)
            merged.setdefault(f"{side}.layers.{index}.", {})[name] = value
        else:
            result[key.replace("decoder.embed_out", "decoder.output_projection.weight")] = value
    for prefix, layer in merged.items():
        if "layer_norm.weight" in layer:
            layer = unmerge(layer, config, config["C"])
        result |= {prefix + name: value for name, value in translate(layer).items()}
    if config["share"]:
        result["decoder.embed_tokens.weight"] = result["encoder.embed_tokens.weight"]
        result["decoder.output_projection.weight"] = result["encoder.embed_tokens.weight"]
    for key, value in model.state_dict().items():
        if key.endswith((".version", "_float_tensor")):
            result[key] = value
    return result


def drop_target_padding(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The fixtures compare outputs at target padding too; they mask the future only, fairseq the padding as well."""
    return args, {**kwargs, "self_attn_padding_mask": None}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", golden_names("muse", "model_"))
def test_model(name: str, fused: bool) -> None:
    config, data = load(name)
    model = model_of(config, data)
    if fused:
        fuse_for_inference(model)
    for layer in model.decoder.layers:
        layer.register_forward_pre_hook(drop_target_padding, with_kwargs=True)
    encoded = model.encoder(data["src_tokens"], data["src_lengths"])
    torch.testing.assert_close(encoded["encoder_out"][0], data["encoder_out"], **TOLERANCE)
    logits, extra = model.decoder(data["prev_output_tokens"], encoder_out=encoded)
    torch.testing.assert_close(logits, data["logits"], **TOLERANCE)
    torch.testing.assert_close(extra["attn"][0], data["attn"], **TOLERANCE)

    nopad = data["prev_nopad"]
    with torch.no_grad():
        torch.testing.assert_close(model.decoder(nopad, encoder_out=encoded)[0], data["logits_nopad"], **TOLERANCE)
        state: dict[str, Any] = {}
        steps = [
            model.decoder(nopad[:, : step + 1], encoder_out=encoded, incremental_state=state)[0]
            for step in range(nopad.size(1))
        ]
    torch.testing.assert_close(torch.cat(steps, dim=1), data["logits_steps"], **TOLERANCE)
    if fused or "w.encoder.layers.0.layer_norm.weight" in data:
        return  # gradients of merged matrices have no counterpart

    (logits * data["grad_out"]).sum().backward()
    expected = translate(part(data, "g."))
    gradients = {parameter_name: parameter.grad for parameter_name, parameter in model.named_parameters()}
    assert expected
    for key, gradient in expected.items():
        key = key.replace("decoder.embed_out", "decoder.output_projection.weight")
        torch.testing.assert_close(gradients[key], gradient, **TOLERANCE, msg=lambda text, key=key: f"{key}: {text}")

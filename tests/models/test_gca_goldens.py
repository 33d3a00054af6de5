"""Cross-view decoding: the fairseq binding against golden values, forward and every gradient, in float64."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_ext.models import TransformerExtModel
from tests.helpers import golden_names, load_golden
from tests.models.tiny import PAD, decode_by_step, translation_model

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}
MODEL_TOLERANCE = {"rtol": 1e-6, "atol": 2e-7}  # fairseq computes softmax in float32 even for float64 inputs


def tensors(golden: dict[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    """The arrays below ``prefix`` under the parameter names of this package."""
    named = {}
    for key, value in golden.items():
        if not key.startswith(prefix):
            continue
        name, value = key.removeprefix(prefix), torch.from_numpy(value)
        if name in ("decoder.view_gate", "decoder.layer_mix"):
            part = {"decoder.view_gate": "gate", "decoder.layer_mix": "mix"}[name]
            for layer, row in enumerate(value):
                named[f"decoder.layers.{layer}.encoder_attn.fusion.{part}"] = row
        elif name == "decoder.ama_proj.weight":  # one parameter; its first path is the one torch reports
            named["decoder.layers.0.encoder_attn.fusion.ama_proj.weight"] = value
        else:
            named[re.sub(r"encoder_attn_aux\.", "encoder_attn.aux.", name)] = value
    return named


def load(model: nn.Module, golden: dict[str, np.ndarray], elsewhere: tuple[str, ...] = ()) -> dict[str, nn.Parameter]:
    """Sets every parameter of the decoder layers (and others that the file has); returns the ones that were set."""
    model.double()
    parameters = dict(model.named_parameters())
    weights = tensors(golden, "w.")
    unknown = [name for name in weights if name not in parameters and ".fusion." not in name]
    unknown = [name for name in unknown if "aux" not in name]  # a layer whose views coincide has no second projection
    assert not unknown, unknown
    loaded = {}
    for name, value in weights.items():
        if name in parameters:
            parameters[name].data.copy_(value)
            loaded[name] = parameters[name]
    missing = [name for name in parameters if name not in loaded and not name.startswith(elsewhere)]
    assert not missing, missing
    return loaded


def check_gradients(loaded: dict[str, nn.Parameter], golden: dict[str, np.ndarray], **tolerance: float) -> None:
    gradients = tensors(golden, "gw.")
    assert loaded
    for name, parameter in loaded.items():
        torch.testing.assert_close(
            parameter.grad, gradients[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def model_for(golden: dict[str, np.ndarray], **options: object) -> TransformerExtModel:
    return translation_model(
        symbols=16,
        cross_view=str(golden["meta.strategy"]).replace("_", "-"),
        cross_view_fusion=str(golden["meta.fusion"]),
        **options,
    )


@pytest.mark.parametrize("name", golden_names("gca", "dec_"))
def test_decoder_stacks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # the stacks were computed with a float64 softmax; fairseq's rounds its result to float32
    monkeypatch.setattr(
        "fairseq.modules.multihead_attention.utils.softmax", lambda x, dim, onnx_trace=False: F.softmax(x, dim=dim)
    )
    golden = load_golden("gca", name)
    pre_norm = bool(golden["meta.pre_ln"])
    model = model_for(
        golden,
        encoder_layers=int(golden["meta.Ne"]),
        decoder_layers=int(golden["meta.Nd"]),
        encoder_normalize_before=pre_norm,
        decoder_normalize_before=pre_norm,
    )
    loaded = load(model, golden, elsewhere=("encoder.", "decoder.embed_tokens", "decoder.output_projection"))
    x = torch.from_numpy(golden["x"]).requires_grad_()
    states = torch.from_numpy(golden["enc_states"]).requires_grad_()
    padding = torch.from_numpy(golden["encoder_padding_mask"])

    last = len(states) - 1
    if model.encoder.cfg.cross_view == "none":
        memory = states[last]
    else:
        memory = torch.cat([model.encoder.normalize_view(state, index) for index, state in enumerate(states)], dim=-1)
    out = x
    for layer in model.decoder.layers:
        out = layer(out, memory, padding, self_attn_mask=model.decoder.buffered_future_mask(out))[0]
    if model.decoder.layer_norm is not None:
        out = model.decoder.layer_norm(out)
    torch.testing.assert_close(out, torch.from_numpy(golden["out"]), **TOLERANCE)

    (out * torch.from_numpy(golden["grad_out"])).sum().backward()
    torch.testing.assert_close(x.grad, torch.from_numpy(golden["grad_x"]), **TOLERANCE)
    torch.testing.assert_close(states.grad, torch.from_numpy(golden["grad_enc_states"]), **TOLERANCE)
    check_gradients(loaded, golden, **TOLERANCE)


@pytest.mark.parametrize("name", golden_names("gca", "model_"))
def test_models(name: str) -> None:
    golden = load_golden("gca", name)
    model = model_for(golden, share_decoder_input_output_embed=True)
    loaded = load(model, golden, elsewhere=("decoder.output_projection",))
    source, previous, target = (torch.from_numpy(golden[key]) for key in ("src_tokens", "prev_output_tokens", "target"))
    logits, _ = model(source, None, previous)
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD, reduction="sum")
    torch.testing.assert_close(logits, torch.from_numpy(golden["logits"]), **MODEL_TOLERANCE)
    torch.testing.assert_close(loss.item(), golden["loss"].item(), **MODEL_TOLERANCE)
    loss.backward()
    check_gradients(loaded, golden, **MODEL_TOLERANCE)

    model.eval()
    with torch.no_grad():
        encoder_out = model.encoder(source, None)
        states = torch.from_numpy(golden["enc_states"])
        packed = encoder_out["encoder_out"][0].unflatten(-1, (len(states), -1)).permute(2, 0, 1, 3)
        valid = source.ne(PAD).T
        torch.testing.assert_close(packed[:, valid], states[:, valid], **MODEL_TOLERANCE)
        stepwise = decode_by_step(model, previous, encoder_out)
    # a cache of keys that is shared by the views is off by 0.39 here
    real = target.ne(PAD)
    torch.testing.assert_close(stepwise[real], torch.from_numpy(golden["logits"])[real], **MODEL_TOLERANCE)

"""AdaNorm and LayerNorm-simple in whole models: values computed with the released norms inside fairseq's model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fairseq_ext.modules import AdaNorm
from tests.helpers import golden_names, load_golden
from tests.models.tiny import PAD, translation_model

TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.mark.parametrize("name", golden_names("adanorm", "model_"))
def test_model(name: str) -> None:
    golden = {key: torch.from_numpy(value) for key, value in load_golden("adanorm", name).items()}
    pre_norm = bool(golden["prenorm"])
    model = translation_model(
        width=16,
        ffn=32,
        layers=2,
        share_all_embeddings=True,
        max_source_positions=64,
        max_target_positions=64,
        encoder_normalize_before=pre_norm,
        decoder_normalize_before=pre_norm,
        norm="layernorm-simple" if "simple" in name else "adanorm",
        norm_scope="final" if "finalonly" in name else "all",
        adanorm_scale=golden["C"].item(),
        adanorm_k=golden["k"].item(),
    ).eval()
    weights = {key.removeprefix("w:"): value for key, value in golden.items() if key.startswith("w:")}
    model.load_state_dict(weights)  # strict: the norms must have exactly the parameters that the file has
    if "finalonly" in name:
        assert sum(isinstance(module, AdaNorm) for module in model.modules()) == 2

    logits, _ = model(golden["src_tokens"], golden["src_lengths"], golden["prev_output_tokens"])
    loss = F.cross_entropy(logits.flatten(0, 1), golden["target"].flatten(), ignore_index=PAD, reduction="sum")
    torch.testing.assert_close(logits, golden["logits"], **TOLERANCE)
    torch.testing.assert_close(loss, golden["loss"], **TOLERANCE)

    loss.backward()
    for parameter, tensor in model.named_parameters():
        torch.testing.assert_close(
            tensor.grad, golden[f"grad:{parameter}"], **TOLERANCE, msg=lambda text, name=parameter: f"{name}: {text}"
        )

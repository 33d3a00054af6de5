"""``--inference-dtype``: a loaded model converted for decoding or scoring on a CPU."""

from __future__ import annotations

from fairseq.models import BaseFairseqModel
from fairseq.models.transformer import TransformerModelBase
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.modules import MultiheadAttention
from fairseq.modules.adaptive_softmax import TiedLinear
from torch import nn

from fairseq_ext.models.fused import TRANSFORMER_FORMS, fuse_for_inference
from fairseq_ext.modules.packed_linear import (
    INFERENCE_DTYPES,
    check_packable,
    is_supported,
    pack_linears_,
    processor_note,
)
from fairseq_ext.training.errors import OptionError, choose
from fairseq_ext.training.progress import warn

__all__ = ["CONVERTIBLE", "convert_for_inference_", "inference_dtype"]

OPTION = "--inference-dtype"
CONVERTIBLE = (TransformerModelBase, TransformerLanguageModel)


def convert_for_inference_(model: BaseFairseqModel, dtype: str) -> BaseFairseqModel:
    """Fuses a Transformer's layers and packs its linear maps and output projection, in place; returns the model.

    It is the last step of ``prepare_for_inference_`` where ``--inference-dtype`` is given. Embeddings, norms, softmax,
    attention and scores stay float32. Converting again changes nothing.

    Args:
        model: fairseq's or this suite's, float32, on the CPU, prepared for inference.
        dtype: one of :data:`~fairseq_ext.modules.packed_linear.INFERENCE_DTYPES`.

    Raises:
        OptionError: another dtype, one that this machine has no product for, another kind of model or of weights.
    """
    choose(OPTION, dtype, INFERENCE_DTYPES)
    before = inference_dtype(model)
    if before == dtype:
        return model
    if before is not None:
        raise OptionError(f"{OPTION} {dtype}: the model was converted to {before} already, load it again")
    if dtype != "float32" and not is_supported(dtype):
        raise OptionError(f"{OPTION} {dtype}: {processor_note(dtype)}")
    if not isinstance(model, CONVERTIBLE):
        raise OptionError(
            f"{OPTION} {dtype}: converts Transformers and their language models, not {type(model).__name__}"
        )
    for name, module in model.named_modules():
        if type(module).__module__.startswith("fairseq.modules.quantization."):
            raise OptionError(f"{OPTION} {dtype}: the model is quantized already, {name} is {type(module).__name__}")
    try:
        check_packable(model, dtype)
    except ValueError as error:
        raise OptionError(f"{OPTION} {dtype}: {error}; --cpu without --fp16 gives float32 on the CPU") from None
    fuse_for_inference(model, TRANSFORMER_FORMS)
    _untie_heads_(model)
    pack_linears_(model, dtype)
    for attention in model.modules():
        if isinstance(attention, MultiheadAttention) and not attention.use_xformers:
            # this keeps it off torch's fused attention, which reads the weights of the linear layers
            attention.skip_embed_dim_check = True
    if note := processor_note(dtype):
        warn(f"{OPTION} {dtype}: {note}")
    model.inference_dtype = dtype
    return model


def inference_dtype(model: nn.Module) -> str | None:
    """The dtype that a model was converted to; ``None`` for a model that was not converted."""
    return getattr(model, "inference_dtype", None)


def _untie_heads_(model: nn.Module) -> None:
    """Puts linear layers in place of fairseq's module through which adaptive softmax multiplies by embeddings."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, TiedLinear):
                weight = child.weight.t() if child.transpose else child.weight
                linear = nn.Linear(weight.size(1), weight.size(0), bias=False, device="meta")
                linear.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
                setattr(parent, name, linear)

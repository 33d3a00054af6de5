"""``transformer_lm_ext``: fairseq's Transformer language model with the suite's options."""

from __future__ import annotations

from typing import Any

from fairseq.models import register_model
from fairseq.models.transformer import TransformerDecoder
from fairseq.models.transformer_lm import TransformerLanguageModel

from fairseq_ext.errors import OptionError
from fairseq_ext.models.config import (
    TransformerLanguageModelExtConfig,
    add_options,
    legacy_arguments,
    nested_config,
)
from fairseq_ext.models.ext_options import check_options
from fairseq_ext.models.layers import changes_layers
from fairseq_ext.models.stock_options import check_stock_options
from fairseq_ext.models.transformer import ExtModel, TransformerExtDecoder


@register_model("transformer_lm_ext", dataclass=TransformerLanguageModelExtConfig)
class TransformerLanguageModelExt(ExtModel, TransformerLanguageModel):
    """Decoder-only Transformer with ``--block``, ``--attention-*`` and ``--norm``; it has no views to cross.

    Adaptive input, character embeddings and adaptive softmax are fairseq's business and are refused here.
    """

    @classmethod
    def add_args(cls, parser: Any) -> None:
        add_options(parser, TransformerLanguageModelExtConfig)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> TransformerLanguageModelExt:
        for name in ("adaptive_input", "character_embeddings", "adaptive_softmax_cutoff", "decoder_layers_to_keep"):
            if getattr(args, name):
                raise OptionError(f"--{name.replace('_', '-')}: not supported by transformer_lm_ext")
        for name in ("decoder_input_dim", "decoder_output_dim"):  # 512 is fairseq's default, whatever the width
            if getattr(args, name) not in (512, args.decoder_embed_dim):
                raise OptionError(f"--{name.replace('_', '-')}: transformer_lm_ext uses --decoder-embed-dim throughout")
        nested = nested_config(args, TransformerLanguageModelExtConfig)
        nested.decoder.input_dim = nested.decoder.output_dim = nested.decoder.embed_dim
        nested.max_target_positions = args.max_target_positions or args.tokens_per_sample
        check_options(nested, encoder=None, decoder=nested.decoder, cross_attention=False)
        check_stock_options(nested, encoder=None, decoder=nested.decoder)
        embed_tokens = cls.build_embedding(args, task.source_dictionary, args.decoder_embed_dim)
        kind = TransformerExtDecoder if changes_layers(nested, "decoder", cross_attention=False) else TransformerDecoder
        model = cls(kind(nested, task.target_dictionary, embed_tokens, no_encoder_attn=True))
        model.configure(nested, legacy_arguments(args, TransformerLanguageModelExtConfig))
        return model

"""``transformer_lm_ext``: fairseq's Transformer language model with the suite's options."""

from __future__ import annotations

from typing import Any

from fairseq.models import register_model
from fairseq.models.transformer import TransformerDecoder
from fairseq.models.transformer_lm import TransformerLanguageModel
from fairseq.modules import AdaptiveInput, CharacterTokenEmbedder
from torch import Tensor, nn

from fairseq_ext.models.adaptive_span import AdaptiveSpanModel, check_criterion
from fairseq_ext.models.check_options import check_options
from fairseq_ext.models.config import (
    TransformerLanguageModelExtConfig,
    add_options,
    legacy_arguments,
    nested_config,
)
from fairseq_ext.models.ext_model import ExtModel
from fairseq_ext.models.layers import changes_layers
from fairseq_ext.models.stock_options import check_language_model_options, check_stock_options, check_task
from fairseq_ext.models.transformer import TransformerExtDecoder
from fairseq_ext.training.errors import OptionError

__all__ = ["TransformerLanguageModelExt"]


@register_model("transformer_lm_ext", dataclass=TransformerLanguageModelExtConfig)
class TransformerLanguageModelExt(AdaptiveSpanModel, ExtModel, TransformerLanguageModel):
    """Decoder-only Transformer with ``--block``, ``--attention-*``, ``--norm`` and ``--init``; it has no views.

    With ``--attention-span`` its heads learn how far back they look (:mod:`fairseq_ext.modules.adaptive_span`).

    With every option at its default, parameters, state-dict keys and outputs are those of fairseq's ``transformer_lm``,
    with adaptive or character inputs and adaptive softmax as well.
    """

    @classmethod
    def add_args(cls, parser: Any) -> None:
        add_options(parser, TransformerLanguageModelExtConfig)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> TransformerLanguageModelExt:
        check_task(task, "transformer_lm_ext", ("language_modeling", "multilingual_language_modeling"))
        nested = nested_config(args, TransformerLanguageModelExtConfig)
        nested.max_target_positions = nested.max_target_positions or nested.tokens_per_sample
        nested.checkpoint_activations |= nested.offload_activations
        check_options(nested, encoder=None, decoder=nested.decoder, cross_attention=False)
        check_stock_options(nested, encoder=None, decoder=nested.decoder)
        check_language_model_options(nested, task.source_dictionary)
        arguments = legacy_arguments(args, TransformerLanguageModelExtConfig)
        check_criterion(nested, getattr(arguments, "criterion", None))
        embed_tokens = cls.build_input(nested, task.source_dictionary)
        kind = TransformerExtDecoder if changes_layers(nested, "decoder", cross_attention=False) else TransformerDecoder
        model = cls(kind(nested, task.target_dictionary, embed_tokens, no_encoder_attn=True))
        model.share_positions()
        model.configure(nested, arguments)
        return model

    @classmethod
    def build_input(cls, cfg: Any, dictionary: Any) -> nn.Module:
        """The module that embeds tokens, as in fairseq, which, however, evaluates ``character_filters`` as code."""
        if cfg.character_embeddings:
            return CharacterTokenEmbedder(
                dictionary,
                cfg.character_filters,
                cfg.character_embedding_dim,
                cfg.decoder.embed_dim,
                cfg.char_embedder_highway_layers,
            )
        if cfg.adaptive_input:
            return AdaptiveInput(
                len(dictionary),
                dictionary.pad(),
                cfg.decoder.input_dim,
                cfg.adaptive_input_factor,
                cfg.decoder.embed_dim,
                cfg.adaptive_input_cutoff,
                cfg.quant_noise.pq,
                cfg.quant_noise.pq_block_size,
            )
        return cls.build_embedding(cfg, dictionary, cfg.decoder.input_dim)

    def get_normalized_probs(self, net_output: Any, log_probs: bool, sample: Any = None) -> Tensor:
        """As in fairseq, but refused in training with adaptive softmax, which overwrites values the gradient needs."""
        if self.training and self.decoder.adaptive_softmax is not None:
            raise OptionError("--adaptive-softmax-cutoff: trains with --criterion adaptive_loss alone")
        return super().get_normalized_probs(net_output, log_probs, sample)

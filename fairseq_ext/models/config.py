"""The options of ``transformer_ext`` and ``transformer_lm_ext``: fairseq's and the suite's in one flat dataclass each.

The dataclass is flat because fairseq then stores a plain dict in its checkpoints, which torch's safe loader accepts.
The field names avoid the prefixes ``encoder_``, ``decoder_`` and ``quant_noise_``, which fairseq routes into its nested
configs.
"""

import argparse
import ast
import dataclasses
from dataclasses import dataclass, field
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models.transformer.transformer_config import (
    DecoderConfig,
    EncDecBaseConfig,
    QuantNoiseConfig,
    TransformerConfig,
)
from fairseq.models.transformer_lm import TransformerLanguageModelConfig
from omegaconf import II, OmegaConf

from fairseq_ext.models.ext_options import ExtOptions
from fairseq_ext.models.stock_options import parse_layers
from fairseq_ext.training.errors import OptionError
from fairseq_ext.training.options import flag

__all__ = [
    "TransformerExtConfig",
    "TransformerLanguageModelExtConfig",
    "add_options",
    "legacy_arguments",
    "nested_config",
    "option_values",
]

# Defaults that follow another option, where fairseq's parser has none.
FOLLOWS = {
    "decoder_embed_dim": II(".encoder_embed_dim"),
    "decoder_ffn_embed_dim": II(".encoder_ffn_embed_dim"),
    "decoder_input_dim": II(".decoder_embed_dim"),
    "decoder_output_dim": II(".decoder_embed_dim"),
}


# Options that fairseq hands to `eval`; here they come from checkpoints too.
LITERALS: dict[str, tuple[Any, str]] = {
    "adaptive_softmax_cutoff": (list, "numbers like 5000,20000"),
    "adaptive_input_cutoff": (list, "numbers like 5000,20000"),
    "character_filters": (list, "pairs like [(1, 64), (2, 128)]"),
    "encoder_xformers_att_config": (dict, "a dictionary like {'name': 'linformer'}"),
    "decoder_xformers_att_config": (dict, "a dictionary like {'name': 'linformer'}"),
}


def _flat_transformer_fields() -> list[tuple[str, Any, Any]]:
    """``TransformerConfig`` with its nested parts spelt out (``encoder_layers``, ...), as on fairseq's command line."""
    nested = {"encoder": EncDecBaseConfig, "decoder": DecoderConfig, "quant_noise": QuantNoiseConfig}
    # fairseq declares it as a list of numbers and reads it as a text; the language model declares it right
    text = TransformerLanguageModelConfig.__annotations__["decoder_layers_to_keep"]
    types = {"encoder_layers_to_keep": text, "decoder_layers_to_keep": text}
    helps = {"decoder_input_dim": "decoder input dimension, that of the embeddings"}  # without one: no --option
    flat = []
    for outer in dataclasses.fields(TransformerConfig):
        inner = dataclasses.fields(nested[outer.name]) if outer.name in nested else [outer]
        for item in inner:
            if item.name == "_name":
                continue
            name = f"{outer.name}_{item.name}" if outer.name in nested else item.name
            metadata = {**item.metadata, **({"help": helps[name]} if name in helps else {})}
            copied = field(default=FOLLOWS.get(name, item.default), metadata=metadata)
            flat.append((name, types.get(name, item.type), copied))
    return flat


_FlatTransformerConfig = dataclasses.make_dataclass(
    "_FlatTransformerConfig", _flat_transformer_fields(), bases=(FairseqDataclass,), namespace={"__module__": __name__}
)


@dataclass
class TransformerExtConfig(ExtOptions, _FlatTransformerConfig):  # type: ignore[misc, valid-type]
    """fairseq's Transformer options, flat, and :class:`ExtOptions`."""


@dataclass
class TransformerLanguageModelExtConfig(ExtOptions, TransformerLanguageModelConfig):
    """fairseq's Transformer language-model options and :class:`ExtOptions`."""


def add_options(parser: Any, kind: type[FairseqDataclass]) -> None:
    """Adds the options of ``kind`` to a parser, without defaults, so that a preset sees which ones were not given."""
    defaults = kind()
    for name in FOLLOWS:
        if str(getattr(defaults, name, "")).startswith("${."):  # fairseq would take any text for these numbers
            parser.add_argument(flag(name), type=int, help=defaults._get_help(name))
    gen_parser_from_dataclass(parser, defaults, delete_default=True)


def option_values(flat: Any, kind: type[FairseqDataclass]) -> dict[str, Any]:
    """Every option by name.

    Args:
        flat: an instance of ``kind``, its OmegaConf form, or an argparse namespace, which may lack some options.
        kind: the dataclass with the defaults.
    """
    if OmegaConf.is_config(flat):
        return OmegaConf.to_container(flat, resolve=True)  # type: ignore[return-value]
    values = {item.name: item.default for item in dataclasses.fields(kind)} | vars(flat)
    for name, default in FOLLOWS.items():
        if values.get(name) == default:
            values[name] = values[default[3:-1]]
    return values


def nested_config(flat: Any, kind: type[FairseqDataclass] = TransformerExtConfig) -> TransformerConfig:
    """The nested config that fairseq's encoder, decoder and layers read, carrying the :class:`ExtOptions` as well.

    Args:
        flat, kind: as for :func:`option_values`.

    Raises:
        OptionError: an option that must be a Python literal is none.
    """
    values = option_values(flat, kind)
    for name, (literal, form) in LITERALS.items():
        if values.get(name) is not None:
            values[name] = _read_literal(flag(name), values[name], literal, form)
    config = TransformerConfig.from_namespace(argparse.Namespace(**values))
    for side in ("encoder", "decoder"):
        part = getattr(config, side)
        if part.layers_to_keep:
            part.layers = len(parse_layers(f"--{side}-layers-to-keep", part.layers_to_keep))
    return config


def _read_literal(option: str, value: Any, kind: type[list] | type[dict], form: str) -> Any:
    text = f"[{value}]" if kind is list and isinstance(value, str) and value[:1] not in "[(" else value
    try:
        literal = kind(ast.literal_eval(text) if isinstance(text, str) else text)
    except (ValueError, SyntaxError, TypeError):
        raise OptionError(f"{option}: must be {form}, got {value!r}") from None
    return repr(literal) if kind is dict else literal  # the attention of xFormers takes a text


def legacy_arguments(flat: Any, kind: type[FairseqDataclass]) -> argparse.Namespace:
    """All options of a run in one namespace, which fairseq's older code reads as ``model.args``.

    Args:
        flat, kind: as for :func:`option_values`. All sections beside the model's in an OmegaConf form are read as well.
    """
    arguments: dict[str, Any] = {}
    if OmegaConf.is_config(flat) and flat._get_root() is not flat:
        for section, node in OmegaConf.to_container(flat._get_root()).items():  # type: ignore[union-attr]
            node = vars(node) if isinstance(node, argparse.Namespace) else node
            arguments |= node if isinstance(node, dict) else {}
            arguments[section] = node.get("_name") if isinstance(node, dict) else node
    arguments |= option_values(flat, kind)
    return argparse.Namespace(**{**arguments, "arch": arguments.get("_name")})

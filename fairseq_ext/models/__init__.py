"""fairseq bindings: ``transformer_ext``, ``transformer_lm_ext`` and their named presets."""

from fairseq_ext import compat
from fairseq_ext.models import architectures  # noqa: F401  (registers the presets)
from fairseq_ext.models.language_model import TransformerLanguageModelExt
from fairseq_ext.models.transformer import TransformerExtModel

__all__ = ["TransformerExtModel", "TransformerLanguageModelExt"]

compat.apply()  # a program may import this module first, before fairseq

"""fairseq bindings: ``transformer_ext``, its forms for language models and captions, and their named presets."""

from fairseq_ext import compat
from fairseq_ext.models import architectures  # noqa: F401  (registers the presets)
from fairseq_ext.models.captioning import CaptioningTransformerExtModel
from fairseq_ext.models.language_model import TransformerLanguageModelExt
from fairseq_ext.models.transformer import TransformerExtModel

__all__ = ["CaptioningTransformerExtModel", "TransformerExtModel", "TransformerLanguageModelExt"]

compat.apply()  # a program may import this module first, before fairseq

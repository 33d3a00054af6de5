"""The methods in models that people have, in Hugging Face or their own. Other libraries are imported by their use."""

from fairseq_ext.integrations.attention import register_attention
from fairseq_ext.integrations.norms import NormChange, replace_norms

__all__ = ["NormChange", "register_attention", "replace_norms"]

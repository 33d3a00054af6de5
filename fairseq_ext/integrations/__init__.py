"""The methods in users' own models and those of Hugging Face. Other libraries are imported only when used."""

from fairseq_ext.integrations.attention import register_attention
from fairseq_ext.integrations.causal_lm import FusedCausalLMLoss
from fairseq_ext.integrations.norms import NormChange, replace_norms
from fairseq_ext.integrations.trainer import encouraging_compute_loss

__all__ = ["FusedCausalLMLoss", "NormChange", "encouraging_compute_loss", "register_attention", "replace_norms"]

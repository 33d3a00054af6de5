"""Attention with an adaptive span in a language model, and the parts of the model that it needs."""

from __future__ import annotations

from typing import Any

import torch
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.incremental_decoding_utils import FairseqIncrementalState
from fairseq.modules import FairseqDropout
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn

from fairseq_ext.models.attention import IncrementalState, NotExportable
from fairseq_ext.modules.adaptive_span import AdaptiveSpanAttention
from fairseq_ext.training.errors import OptionError

__all__ = ["AdaptiveSpanModel", "AdaptiveSpanSelfAttention", "check_criterion"]


class AdaptiveSpanSelfAttention(FairseqIncrementalState, NotExportable, AdaptiveSpanAttention):
    """:class:`~fairseq_ext.modules.AdaptiveSpanAttention` with the arguments of fairseq's multi-head attention.

    A sample is a text of its own: nothing lies before its first token.

    Args:
        q_noise, qn_block_size: quantization noise on the projections, as in fairseq.
        *args, **kwargs: the arguments of :class:`~fairseq_ext.modules.AdaptiveSpanAttention`.
    """

    option = "--attention-span"

    def __init__(self, *args: Any, q_noise: float = 0.0, qn_block_size: int = 8, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head_dim = self.q_proj.out_features // self.num_heads  # read by --scale-heads
        self.position = nn.Parameter(torch.empty(1, self.head_dim, self.span.max_span))
        nn.init.normal_(self.position)
        # a dropout that --retain-dropout can keep
        self.dropout_module = FairseqDropout(self.dropout_module.p, module_name=type(self).__name__)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            quant_noise(projection, q_noise, qn_block_size)

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Causal self-attention of ``query`` (T, B, C), ``key_padding_mask`` (B, T); the other tensors are not read."""
        del key, value, need_weights, attn_mask
        x = query.transpose(0, 1)
        key, value = self.k_proj(x), self.v_proj(x)
        if key_padding_mask is None:
            key_padding_mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        if incremental_state is not None:
            saved = self._get_input_buffer(incremental_state)
            key, value, key_padding_mask = (
                torch.cat([saved[name], new], dim=1) if saved else new
                for name, new in (("key", key), ("value", value), ("mask", key_padding_mask))
            )
            size = self.span.cache_size()
            cache = {"key": key[:, -size:], "value": value[:, -size:], "mask": key_padding_mask[:, -size:]}
            self.set_incremental_state(incremental_state, "attn_state", cache)
        visible = self.span.max_span - self.span.trim_length()
        return self.attend(x, key, value, self.position, key_padding_mask, visible).transpose(0, 1), None

    def _get_input_buffer(self, incremental_state: IncrementalState | None) -> dict[str, Tensor | None]:
        """The cache, under the name by which fairseq's decoder layer asks for it."""
        return self.get_incremental_state(incremental_state, "attn_state") or {}

    def reorder_incremental_state(self, incremental_state: IncrementalState, new_order: Tensor) -> IncrementalState:
        """Called by beam search between two steps."""
        saved = self._get_input_buffer(incremental_state)
        if saved:
            reordered = {name: states.index_select(0, new_order) for name, states in saved.items()}
            self.set_incremental_state(incremental_state, "attn_state", reordered)
        return incremental_state


class AdaptiveSpanModel(nn.Module):
    """Base of models whose self-attentions may have adaptive spans; without ``--attention-span`` it does nothing."""

    def span_attentions(self) -> list[AdaptiveSpanSelfAttention]:
        """The attentions with an adaptive span of all layers, bottom first."""
        return [module for module in self.modules() if isinstance(module, AdaptiveSpanSelfAttention)]

    def share_positions(self) -> None:
        """Gives all layers one relative position embedding, as the authors do."""
        attentions = self.span_attentions()
        for attention in attentions:
            attention.position = attentions[0].position

    def span_loss(self) -> Tensor:
        """The loss of ``--attention-span-loss``, summed over layers, to be added to a mean loss."""
        return torch.stack([attention.span.span_loss() for attention in self.span_attentions()]).sum()

    def average_span(self) -> float:
        """How far back heads look, ramp included, averaged over heads and layers."""
        spans = [attention.span.current_avg_span() for attention in self.span_attentions()]
        return sum(spans) / len(spans)

    @torch.no_grad()
    def perform_slowmo(self, optimizer: Any, fp32_params: Any = None) -> None:
        """Brings spans back into [0, 1]; fairseq's trainer calls it, by this name, after every optimiser step.

        Args:
            optimizer: not used.
            fp32_params: the optimiser's own copies of half-precision parameters, in their order: a list, or one flat
                tensor by device.
        """
        spans = [attention.span for attention in self.span_attentions()]
        for span in spans:
            span.clamp_()
        values = {span.current_val for span in spans}
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        copies = fp32_params or []
        if isinstance(copies, dict):
            sizes = [parameter.numel() for parameter in trained]
            (flat,) = copies.values()
            copies = flat[: sum(sizes)].split(sizes)  # a criterion's parameters follow
        for copy, parameter in zip(copies, trained, strict=False):
            if parameter in values:
                copy.clamp_(0, 1)


def check_criterion(cfg: Any, criterion: str | None) -> None:
    """Refuses ``--attention-span-loss`` beside a criterion that does not add it.

    Args:
        cfg: holder of the :class:`~fairseq_ext.models.ext_options.ExtOptions`.
        criterion: name of the criterion, where the configuration of a whole run is given.
    """
    adding = sorted(name for name, kind in CRITERION_REGISTRY.items() if getattr(kind, "adds_span_loss", False))
    if cfg.attention_span_loss and criterion in set(CRITERION_REGISTRY).difference(adding):
        raise OptionError(
            f"--attention-span-loss {cfg.attention_span_loss}: --criterion {criterion} does not add it, "
            f"{', '.join(adding)} do"
        )

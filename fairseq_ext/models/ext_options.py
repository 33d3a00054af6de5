"""The options that the suite adds to fairseq's Transformer, their limits, and the settings that make them idle."""

# No `from __future__ import annotations` here: fairseq reads the field types of the dataclass.
from dataclasses import dataclass
from typing import Any

from fairseq.dataclass import FairseqDataclass

from fairseq_ext.modules.cross_view import FUSIONS, STRATEGIES
from fairseq_ext.modules.muse_init import INIT_LAWS
from fairseq_ext.modules.normalization import NORMS
from fairseq_ext.modules.sparse_attention import NORMALIZERS
from fairseq_ext.modules.sparse_variants import SELECTIONS
from fairseq_ext.training.options import option

__all__ = ["ATTENTIONS", "ExtOptions", "selecting_attentions"]

BLOCKS = ("transformer", "muse", "muse-simple")
NORM_SCOPES = ("all", "final")
NORM_CONVENTIONS = ("released", "paper")
DETACHED = ("both", "mean", "std")
VIEW_NORMS = ("shared", "separate", "none")
ATTENTIONS = ("encoder-self", "decoder-self", "cross")
INITS = ("fairseq", *INIT_LAWS)

WITHOUT_CONVOLUTION = {"block": ("transformer", "muse-simple")}
SEQUENTIAL = {"block": ("transformer",)}
DENSE = {"attention_topk": (0,), "attention_topk_ratio": (0,)}
WITHOUT_SPAN = {"attention_span": (0,)}
PLAIN_NORM = {"norm": ("layernorm",)}
NOT_ADANORM, NOT_DETACHNORM = (
    {"norm": tuple(norm for norm in NORMS if norm != kind)} for kind in ("adanorm", "detachnorm")
)
ONE_VIEW = {"cross_view": ("none",)}


@dataclass
class ExtOptions(FairseqDataclass):
    """What this suite adds to fairseq's Transformer; with every default it adds nothing.

    ``idle`` names the settings of other options with which an option does nothing; beside them it is refused.
    """

    block: str = option("transformer", f"layer topology: {', '.join(BLOCKS)} (MUSE, arXiv 1911.09483)", BLOCKS)
    muse_kernels: str = option(
        "3,15",
        "kernel sizes of the convolution beside the self-attention; '3/3/7,15' gives each layer its own "
        "(released code: 3,15)",
        idle=WITHOUT_CONVOLUTION,
    )
    muse_no_gate: bool = option(
        False,
        "concatenate the kernels' outputs instead of a learned convex combination",
        idle=WITHOUT_CONVOLUTION,
    )
    muse_input_dropout: float = option(
        0.0,
        "dropout on the input of the attention and convolution branch (released code: 0; with attention on WMT: 0.1)",
        least=0,
        below=1,
        idle=SEQUENTIAL,
    )
    muse_weight_dropout: float = option(
        0.1,
        "dropout on the normalised convolution kernels (released code: 0.1)",
        least=0,
        below=1,
        idle=WITHOUT_CONVOLUTION,
    )
    muse_no_padding_mask: bool = option(
        False,
        "let encoder convolutions read padding, as the released models do: results then depend on the batch",
        idle=WITHOUT_CONVOLUTION,
    )
    muse_no_fuse: bool = option(False, "do not merge the matrices of a MUSE layer for generation", idle=SEQUENTIAL)
    attention_topk: int = option(
        0, "keys that each query keeps, 0 keeps all (arXiv 1912.11637; authors' De-En: 8)", least=0
    )
    attention_topk_ratio: float = option(
        0.0,
        "keep ceil(keys / ratio) of the keys that a query may see, instead of a fixed number (the released --div "
        "counts padding and, in training, later tokens too)",
        least=0,
    )
    attention_topk_min: int = option(
        0, "lower bound on the keys kept with --attention-topk-ratio", least=0, idle={"attention_topk_ratio": (0,)}
    )
    attention_topk_in: str = option(
        ",".join(ATTENTIONS),
        "comma-separated attentions that select keys, by top-k or --attention-normalizer (the released --use_att "
        "leaves a normalizer in all)",
        idle={**DENSE, "attention_normalizer": ("softmax",)},
    )
    attention_topk_select: str = option(
        "scores",
        f"how --attention-topk chooses: {', '.join(SELECTIONS)}; the best scores of each head (paper), half of k in a "
        "window around the query, the best of all heads together, the largest probabilities, also with a second "
        "softmax (authors' T2T code)",
        SELECTIONS,
        idle=DENSE,
    )
    attention_normalizer: str = option(
        "softmax", f"scores to weights: {', '.join(NORMALIZERS)} (paper: softmax)", NORMALIZERS
    )
    attention_span: int = option(
        0,
        "tokens that a language model's heads may learn to look back, 0 = fairseq's attention (arXiv 1905.07799; "
        "authors' enwik8 with top-k: 8192)",
        least=0,
    )
    attention_span_ramp: int = option(32, "width of a span's soft edge (authors: 32)", least=1, idle=WITHOUT_SPAN)
    attention_span_init: float = option(
        0.0, "share of --attention-span that a head starts with (authors: 0)", least=0, most=1, idle=WITHOUT_SPAN
    )
    attention_span_loss: float = option(
        0.0, "weight of the loss that shortens spans (authors' enwik8: 5e-7)", least=0, idle=WITHOUT_SPAN
    )
    norm: str = option("layernorm", f"normalisation: {', '.join(NORMS)} (AdaNorm, arXiv 1911.07013)", NORMS)
    norm_scope: str = option(
        "all",
        "replace all LayerNorms, or the two after the stacks: final (paper: all; released code: final)",
        NORM_SCOPES,
        idle=PLAIN_NORM,
    )
    norm_convention: str = option(
        "released",
        "convention of --norm: the released code's, unbiased std and eps outside the root, or the paper's, biased std",
        NORM_CONVENTIONS,
        idle=PLAIN_NORM,
    )
    norm_detach: str = option(
        "both",
        f"what --norm detachnorm detaches: {', '.join(DETACHED)}",
        DETACHED,
        idle=NOT_DETACHNORM,
    )
    adanorm_scale: float = option(
        1.0, "C of AdaNorm (authors: 1; De-En sweep: 0.8, 1, 1.5, 2)", above=0, idle=NOT_ADANORM
    )
    adanorm_k: float = option(0.1, "k of AdaNorm (paper: 0.1)", least=0, idle=NOT_ADANORM)
    cross_view: str = option(
        "none", f"encoder layers that decoder layers read: {', '.join(STRATEGIES)} (paper: gca)", STRATEGIES
    )
    cross_view_fusion: str = option(
        "mean", f"how views are combined: {', '.join(FUSIONS)} (our choice)", FUSIONS, idle=ONE_VIEW
    )
    cross_view_norm: str = option(
        "shared",
        f"encoder's final norm on the views: {', '.join(VIEW_NORMS)} (our choice)",
        VIEW_NORMS,
        idle=ONE_VIEW,
    )
    cross_view_no_global: bool = option(False, "read only the second view (ablation)", idle=ONE_VIEW)
    init: str = option(
        "fairseq",
        f"initial weights: {', '.join(INITS)} (released MUSE: km, as its presets; authors' De-En of AdaNorm: adanorm)",
        INITS,
    )


def selecting_attentions(cfg: Any) -> list[str]:
    """The attentions that ``--attention-topk-in`` names."""
    return [name.strip() for name in cfg.attention_topk_in.split(",")]

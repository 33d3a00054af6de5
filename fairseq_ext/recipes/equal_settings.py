"""Multi30k and Tatoeba, German-English: the IWSLT14 presets, all with the same settings, which are our choice."""

from __future__ import annotations

from fairseq_ext.recipes.recipe import Recipe
from fairseq_ext.recipes.translation import AVERAGED, ENCOURAGING, EPOCHS, INVERSE_SQRT, data_set
from fairseq_ext.training.sources import OURS, by

__all__ = ["EQUAL_SETTINGS"]

TRAINING = EPOCHS | by(OURS, **INVERSE_SQRT, lr=1e-3, weight_decay=1e-4, max_tokens=4096, update_freq=1)
EVALUATION = AVERAGED | by(OURS, remove_bpe="sentencepiece")
MODEL = by(OURS, share_all_embeddings=True, dropout=0.3)
# The baseline's initial weights, not the authors', so that only the norm differs.
NORMS = {method: by(OURS, init="fairseq") for method in ("adanorm", "layernorm-simple")}
_METHODS = {
    "transformer": ("transformer_ext", "Transformer"),
    "explicit-sparse": ("explicit_sparse_transformer", "Top-k attention"),
    "muse": ("muse", "MUSE"),
    "muse-simple": ("muse_simple", "MUSE-simple"),
    "adanorm": ("adanorm_transformer", "AdaNorm"),
    "layernorm-simple": ("layernorm_simple_transformer", "LayerNorm-simple"),
    "gca": ("gca_transformer", "Granularity consistent attention"),
    "encouraging": ("encouraging_transformer", "Encouraging loss"),
}


def _equal_settings(name: str, title: str, max_update: int) -> list[Recipe]:
    """Every method with the same size of update, number of updates and dropout: all our choice."""
    data = data_set(name, "en")
    training = TRAINING | by(OURS, max_update=max_update)
    return [
        Recipe(
            f"{stem}_{data.name}_de_en",
            method,
            data,
            training | (ENCOURAGING if method == "encouraging" else {}),
            EVALUATION,
            arch=f"{'transformer_ext' if method == 'encouraging' else stem}_iwslt_de_en",
            model=MODEL | NORMS.get(method, {}),
            summary=f"{method_title}, {title} De-En: one of eight methods with equal settings (our choice).",
        )
        for method, (stem, method_title) in _METHODS.items()
    ]


EQUAL_SETTINGS = [
    *_equal_settings("multi30k", "Multi30k", max_update=12000),
    *_equal_settings("tatoeba", "Tatoeba", max_update=30000),
]

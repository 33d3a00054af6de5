"""Where values were published: one name for each document, as far as it was at hand.

A value of a paper that was rewritten is listed under the version that has it: the tables of a later version are no
claims of the arXiv paper.
"""

from __future__ import annotations

__all__ = [
    "ADANORM_CODE",
    "ADANORM_PAPER",
    "ADANORM_SCRIPT",
    "BAEVSKI",
    "ENCOURAGING_DE_EN_SCRIPT",
    "ENCOURAGING_FR_EN_SCRIPT",
    "ENCOURAGING_SCRIPTS",
    "EST_LATER_VERSION",
    "EST_SCRIPT",
    "GCA_PAPER",
    "MUSE_CODE",
    "MUSE_JOURNAL_VERSION",
    "MUSE_README",
    "SPAN_SCRIPT",
    "T2T_SCRIPT",
]

_EST = "lancopku/Explicit-Sparse-Transformer"
EST_SCRIPT = f"{_EST}, fairseq_deen_est.sh"
T2T_SCRIPT = f"{_EST}, t2t_envi_est.sh"
SPAN_SCRIPT = f"{_EST}, enwik8 with adaptive span"
EST_LATER_VERSION = "Extremely Sparse Transformer (later version of arXiv 1912.11637)"

MUSE_README = "lancopku/MUSE, README and training logs"
MUSE_CODE = "lancopku/MUSE, released code"
MUSE_JOURNAL_VERSION = "Unified Transformer (journal version of arXiv 1911.09483)"

ADANORM_SCRIPT = "lancopku/AdaNorm, baseline-adanorm-km.sh"
ADANORM_CODE = "lancopku/AdaNorm, what its code builds"
ADANORM_PAPER = "AdaNorm paper (arXiv 1911.07013)"

_ENCOURAGING = "lancopku/well-classified-examples-are-underestimated"
ENCOURAGING_SCRIPTS = f"{_ENCOURAGING}, translation scripts"
ENCOURAGING_DE_EN_SCRIPT = f"{_ENCOURAGING}, IWSLT14 De-En script"
ENCOURAGING_FR_EN_SCRIPT = f"{_ENCOURAGING}, IWSLT17 Fr-En script"

GCA_PAPER = "GCA paper (arXiv 2005.08081)"
BAEVSKI = "fairseq, examples/language_model/README.adaptive_inputs.md"

"""Image-text retrieval whose self-attentions over words and over regions are pulled towards each other (IAIS).

Shuhuai Ren, Junyang Lin, Guangxiang Zhao, Rui Men, An Yang, Jingren Zhou, Xu Sun, Hongxia Yang, "Learning Relation
Alignment for Calibrated Cross-modal Retrieval", ACL-IJCNLP 2021, arXiv:2105.13868.
"""

from vision_language.iais.alignment import annealing, iais_loss, isd, isd_annotated, mirrored_maps
from vision_language.iais.blocks import AttentionBlocks, attention_blocks
from vision_language.iais.evaluate import recall_at_k
from vision_language.iais.hook import IAISHook
from vision_language.iais.model import RegionRetriever

__all__ = [
    "AttentionBlocks",
    "IAISHook",
    "RegionRetriever",
    "annealing",
    "attention_blocks",
    "iais_loss",
    "isd",
    "isd_annotated",
    "mirrored_maps",
    "recall_at_k",
]

"""What the encoder of several tables was pre-trained on."""

from __future__ import annotations

__all__ = ["PRETRAINED"]

PRETRAINED = """MiniLM is `all-MiniLM-L6-v2`, by its model card pre-trained on pairs of texts from sources that include
Stack Exchange's titles, bodies and duplicates, COCO's captions and Flickr30k's: whether texts of a test set are among
them cannot be told."""

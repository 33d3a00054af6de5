"""Captions of images beside fairseq: tokeniser, scores, prepared data. Nothing here needs fairseq to be imported."""

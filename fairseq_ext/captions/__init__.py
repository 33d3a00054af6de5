"""Captions of images: tokeniser, scores, prepared data. The package is imported without fairseq."""

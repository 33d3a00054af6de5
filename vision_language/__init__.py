"""Trainers for images with text and for language models on transformers: IAIS, MUKA, image classification."""

from fairseq_ext.training.extras import name_missing_packages

name_missing_packages("vl")

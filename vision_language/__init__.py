"""Trainers for images with text and for language models on transformers: IAIS and MUKA."""

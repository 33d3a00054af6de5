"""Trainers for images with text on transformers: IAIS and MUKA (planned)."""

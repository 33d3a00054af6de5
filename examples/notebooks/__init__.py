"""Notebooks, one for each side of the suite; `python -m examples.notebooks` runs them again."""

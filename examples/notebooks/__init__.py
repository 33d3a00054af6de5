"""Notebooks, one a side of the suite; `python -m examples.notebooks` runs them again."""

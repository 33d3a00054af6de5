"""Encouraging loss on TU graph classification data sets: ``python -m graph.graph_classification --help``."""

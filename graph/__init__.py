"""Trainers for graphs on torch-geometric: ReNode, label graphs, graph classification."""

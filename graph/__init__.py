"""Trainers for graphs on torch-geometric: ReNode, label graphs, graph classification."""

from fairseq_ext.training.extras import name_missing_packages

name_missing_packages("graph")

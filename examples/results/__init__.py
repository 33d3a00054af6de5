"""Measured results: every method under one budget, and docs/RESULTS.md from what was measured."""

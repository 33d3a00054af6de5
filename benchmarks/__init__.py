"""Side-by-side measurements of speed and memory, one file per claim: ``python -m benchmarks``."""

"""Side-by-side measurements of speed and memory, one file a claim: ``python -m benchmarks``."""

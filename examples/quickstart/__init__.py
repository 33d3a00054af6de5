"""From nothing to a BLEU score in one command: `python -m examples.quickstart`."""

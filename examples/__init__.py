"""Worked examples: each folder is one command to run and one README to copy from."""

"""The trainer kit: what every training of this project shares. It knows no method and no fairseq."""

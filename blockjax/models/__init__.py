"""Stem, layers, heads and decoders of Vision Transformers, and the backbone that is left after training."""

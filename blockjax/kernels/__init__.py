"""Kernels: operations that training spends its memory traffic on. They know nothing of strategies or models."""

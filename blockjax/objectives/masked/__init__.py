"""Objectives that mask patches: pixels (MAE) and visual tokens (BEiT)."""

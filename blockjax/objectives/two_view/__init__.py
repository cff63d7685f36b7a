"""Objectives that compare two augmented views of an image."""

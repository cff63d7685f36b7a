"""Objectives on tiles of an image: jigsaw and context prediction."""

"""Meshes, how states are split over them, and memory spaces."""

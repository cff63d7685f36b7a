"""Objectives of text: which tokens come next, and which are masked."""

"""Benchmarks behind the README's claims about speed."""

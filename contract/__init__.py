"""Test vectors: what the Python implementation answers, for every other implementation to reproduce."""

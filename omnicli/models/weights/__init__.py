"""Checkpoints: where they are, whether they are whole, how they are loaded, quantised and placed."""

"""Measuring: what presets cost and save on one film, one model and one machine."""

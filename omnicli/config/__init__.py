"""Settings, presets, and the registry of methods."""

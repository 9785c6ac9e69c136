"""Does it fit: tokens, positions, arithmetic and peak memory of a run, worked out before anything is loaded."""

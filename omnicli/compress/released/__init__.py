"""Released algorithms where they are others than the clean ones: what `mode: official` of a method does."""

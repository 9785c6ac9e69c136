"""From a file to encoded tokens: decoding beside the encoders, the cache of encoded films."""

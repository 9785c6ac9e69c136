"""The layer loop: KV cache, prefill with pruning, decoding."""

"""Keys and values of one sequence, preallocated per layer; layers may hold different numbers of tokens.

Keys are stored after rotary embedding, so dropping tokens needs no re-rotation. Batch size is one. Nothing here knows
what the tokens are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KVCache:
    """Preallocated cache. A layer's buffers are made at its first use and grow only if ``capacity`` was too small.

    Parameters
    ----------
    layers, kv_heads, head_dim : int
        LLM dimensions.
    device : device, or a sequence of them
        Where all layers' buffers are made, or each layer's.
    capacity : int
        Tokens per layer to allocate.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str | Sequence[torch.device],
        capacity: int,
    ) -> None:
        self.kv_heads, self.head_dim, self.dtype = kv_heads, head_dim, dtype
        each = [device] * layers if isinstance(device, torch.device | str) else device
        self.devices = [torch.device(one) for one in each]
        self.capacity = capacity
        self._capacity = [capacity] * layers
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers
        self._lengths = [0] * layers

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self._lengths)

    @property
    def lengths(self) -> list[int]:
        """Tokens held per layer; give it to `truncate` to return to this state."""
        return list(self._lengths)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(t.nbytes for t in (*self._keys, *self._values) if t is not None)

    def reserve(self, layer: int, capacity: int) -> None:
        """Set a layer's capacity in tokens before its first use (less after pruning); later it can only grow."""
        if self._keys[layer] is None:
            self._capacity[layer] = max(1, capacity)
        elif capacity > self._capacity[layer]:
            self._allocate(layer, capacity)

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append (1, kv_heads, n, head_dim) and return all keys and values of the layer as views."""
        n, start = keys.shape[2], self._lengths[layer]
        stop = start + n
        if self._keys[layer] is None:
            self._allocate(layer, max(self._capacity[layer], stop))
        elif stop > self._capacity[layer]:
            self._allocate(layer, max(stop, self._capacity[layer] * 5 // 4))
        k, v = self._buffers(layer)
        k[:, :, start:stop] = keys
        v[:, :, start:stop] = values
        self._lengths[layer] = stop
        return k[:, :, :stop], v[:, :, :stop]

    def extend(self) -> None:
        """Count one more row in every layer, within the buffers; what writes it is a recorded step."""
        if self.room() < 1:
            raise ValueError("the cache's buffers are full")
        self._lengths = [length + 1 for length in self._lengths]

    def seen(self, layer: int) -> Tensor | None:
        """Return which of the rows that `update` returned are there (kv,) bool; None: all are."""
        return None

    def room(self) -> int:
        """Return how many more tokens fit into every layer's buffers."""
        return min(full - held for full, held in zip(self._capacity, self._lengths, strict=True))

    def keep(self, layer: int, indices: Tensor, capacity: int | None = None) -> None:
        """Keep the tokens at ascending ``indices`` (m,) int64 of one layer and drop the others.

        ``capacity`` in tokens: what stays is moved into buffers of that size and the larger ones are freed.
        """
        m, indices = indices.numel(), indices.to(self.devices[layer])
        if self._keys[layer] is not None:
            k, v = (t.index_select(2, indices) for t in self._buffers(layer))
            self._lengths[layer] = 0
            if capacity is not None and capacity < self._capacity[layer]:
                self._allocate(layer, max(1, capacity, m))
            buffers = self._buffers(layer)
            buffers[0][:, :, :m], buffers[1][:, :, :m] = k, v
        self._lengths[layer] = m

    def copy(self, layers: int, capacity: int) -> KVCache:
        """Return a cache of ``capacity`` with copies of what the first ``layers`` layers hold."""
        new = KVCache(len(self), self.kv_heads, self.head_dim, dtype=self.dtype, device=self.devices, capacity=capacity)
        for layer in range(layers):
            if (length := self._lengths[layer]) > 0:
                keys, values = self._buffers(layer)
                new.update(keys[:, :, :length], values[:, :, :length], layer)
        return new

    def truncate(self, lengths: int | Sequence[int]) -> None:
        """Drop everything after the first ``lengths`` tokens (one number, or one per layer)."""
        wanted = [lengths] * len(self) if isinstance(lengths, int) else list(lengths)
        if len(wanted) != len(self) or any(w > have for w, have in zip(wanted, self._lengths, strict=True)):
            raise ValueError(f"cannot truncate a cache of lengths {self._lengths} to {wanted}")
        self._lengths = wanted

    def _buffers(self, layer: int) -> tuple[Tensor, Tensor]:
        k, v = self._keys[layer], self._values[layer]
        if k is None or v is None:
            raise ValueError(f"layer {layer} of the cache is empty")
        return k, v

    def _allocate(self, layer: int, capacity: int) -> None:
        shape = (1, self.kv_heads, capacity, self.head_dim)
        new = [torch.empty(shape, dtype=self.dtype, device=self.devices[layer]) for _ in range(2)]
        length = self._lengths[layer]
        for buffer, old in zip(new, (self._keys[layer], self._values[layer]), strict=True):
            if old is not None:
                buffer[:, :, :length] = old[:, :, :length]
        self._keys[layer], self._values[layer] = new
        self._capacity[layer] = capacity


class LastRow:
    """A cache as a step of one token sees it that is recorded once and run again for every further token.

    Addresses and shapes are those of the whole buffers; which row is written, and how many are seen, stands in tensors.
    The step writes the row that its `KVCache` counts as the last one of each layer.

    Parameters
    ----------
    cache : KVCache
        On one device, with at least one row in every layer; must not be reallocated while this is in use.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._last = torch.zeros(len(cache), dtype=torch.int64, device=cache.devices[0])
        self._rows = []
        for layer, length in enumerate(cache.lengths):
            keys, values = cache._buffers(layer)
            keys[:, :, length:], values[:, :, length:] = 0, 0  # what is not seen must be numbers
            self._rows.append(torch.arange(keys.shape[2], device=keys.device))
        self.follow()

    def follow(self) -> None:
        """Take over the cache's lengths; not part of a step."""
        self._last.copy_(torch.tensor(self._cache.lengths) - 1)

    def read(self) -> list[Tensor]:
        """Return copies (1, kv_heads, 1, head_dim) of the last row of each layer's keys and values."""
        return [b[:, :, n - 1 : n].clone() for i, n in enumerate(self._cache.lengths) for b in self._cache._buffers(i)]

    def write(self, rows: list[Tensor]) -> None:
        """Put back what `read` returned."""
        for layer, length in enumerate(self._cache.lengths):
            for buffer, row in zip(self._cache._buffers(layer), rows[2 * layer : 2 * layer + 2], strict=True):
                buffer[:, :, length - 1 : length] = row

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write (1, kv_heads, 1, head_dim) and return the layer's whole buffers."""
        for buffer, row in zip(self._cache._buffers(layer), (keys, values), strict=True):
            buffer.index_copy_(2, self._last[layer : layer + 1], row)
        return self._cache._buffers(layer)

    def seen(self, layer: int) -> Tensor:
        """See `KVCache.seen`."""
        return self._rows[layer] <= self._last[layer]

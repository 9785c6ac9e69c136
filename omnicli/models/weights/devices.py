"""Several graphics cards for one model: how a user names them, and how many of the LLM's layers each holds.

Everything but the layers is on the first card. Plans and loading share this; nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from omnicli.errors import ModelError

ALL = "cuda:all"
"""Name of all cards that there are."""

NAMES = f"auto, cpu, cuda, cuda:N, several as cuda:0,cuda:1, or {ALL}"
"""What a device may be called."""

ALONE = "several cards and --offload: the layers are spread so that nothing has to wait in host memory; leave one out"


def several(device: str) -> bool:
    """Tell whether a device's name is one of several cards; ``cuda:all`` may turn out to be one."""
    return device == ALL or "," in device


def numbers(device: str, there: int) -> list[int]:
    """Return the cards that ``cuda:0,cuda:1,...`` or ``cuda:all`` names, of so many that are there.

    Raises
    ------
    ModelError
        Something else than a card, one that is not there, the same one twice, none at all.
    """
    names = [f"cuda:{i}" for i in range(there)] if device == ALL else [part.strip() for part in device.split(",")]
    found: list[int] = []
    for name in names:
        kind, _, number = name.partition(":")
        if kind != "cuda" or not number.isdecimal():
            raise ModelError(f"device {device}: {name!r} is not one of several cards; write cuda:0,cuda:1 or {ALL}")
        if int(number) >= there:
            raise ModelError(f"device {device}: {name} is not available; {there} CUDA devices found")
        if int(number) in found:
            raise ModelError(f"device {device}: {name} is named twice")
        found.append(int(number))
    if not found:
        raise ModelError(f"device {device} is not available; {there} CUDA devices found, use cpu")
    return found


def split(layers: int, layer_bytes: int, other_bytes: int, free: Sequence[int]) -> list[int]:
    """Return how many layers each card holds, in order: the same part of what is free on each is taken by weights.

    What is left is then in the same proportion too, for the KV cache, which each card holds of its own layers. A card
    may be given none.

    Parameters
    ----------
    layers, layer_bytes : int
        How many there are, and the weights of one.
    other_bytes : int
        Weights that are not layers', on the first card.
    free : sequence of int
        Free bytes of each card.
    """
    part = (layers * layer_bytes + other_bytes) / max(1, sum(free))
    if part * free[0] < other_bytes:  # the first card is full without a layer: the others share them
        share = layers / max(1, sum(free[1:]))
        wanted = [0.0, *(share * size for size in free[1:])]
    else:
        wanted = [(part * size - (other_bytes if i == 0 else 0)) / max(1, layer_bytes) for i, size in enumerate(free)]
    ends = [round(sum(wanted[: i + 1])) for i in range(len(free))]
    ends[-1] = layers
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]

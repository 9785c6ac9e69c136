"""Ways in which an item or a worker fails that no other command knows."""

from __future__ import annotations

from omnicli.errors import OmniError


class TimeLimitError(OmniError):
    """An item took longer than it was given. ``exit_code`` is that of timeout(1)."""

    exit_code = 124


class DeviceLostError(OmniError):
    """The device does no work for this process any more; only a new process helps (exit 1)."""

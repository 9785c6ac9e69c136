"""What becomes of a job whose process is gone: once more, by itself; then what failed is given up. Starts nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from omnicli.batch.errors import TimeLimitError
from omnicli.batch.items import Item, Job


@dataclass
class Attempt:
    """A job in other hands. ``left``: items without a row; ``again``: it was given out a second time."""

    job: Job
    left: list[Item] = field(init=False)
    again: bool = False

    def __post_init__(self) -> None:
        self.left = list(self.job.items)

    def rest(self) -> Job:
        """Return the job that is still to be done."""
        return Job(self.job.media, tuple(self.left))

    def dropped(self, code: int) -> list[Item]:
        """Return the items that fail because the process is gone, taken out of ``left``.

        None the first time: it may have been the file that was looked at meanwhile, or nobody here. What took too long
        would do so again. If nothing came of the film at all, its other questions would go the same way, each with a
        process.

        Parameters
        ----------
        code : int
            Exit code of the row.
        """
        if code != TimeLimitError.exit_code and not self.again:
            self.again = True
            return []
        lost = self.left if len(self.left) == len(self.job.items) else self.left[:1]
        self.left = self.left[len(lost) :]
        return lost

"""The tests, in the folders of the package. They run two at a time (pyproject.toml), so each computes in one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

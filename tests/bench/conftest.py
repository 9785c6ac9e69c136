"""What the tests of measuring share with those of the command line: a runner, a tiny random model, small films."""

from __future__ import annotations

from tests.cli.conftest import _nobody_home, film, film_folder, omni, tiny_model

__all__ = ["_nobody_home", "film", "film_folder", "omni", "tiny_model"]

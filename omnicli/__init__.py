"""omni: questions about hour-long films, answered on one machine.

Importing this package imports neither torch nor transformers.
"""

from omnicli.version import __version__

__all__ = ["__version__"]

"""omni: questions about hour-long films, answered on one machine.

Importing this package imports neither torch nor transformers.
"""

__version__ = "0.1.0"

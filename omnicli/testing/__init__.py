"""What every model family and every method keeps, checked: one short message per point that is not kept.

For whoever writes a family, in this package or another (`docs/extending/adding-a-model.md`)::

    assert testing.of_class(MyFamily) == []
    assert testing.of_model(my_tiny_model, stock) == []
    assert testing.of_folder(MyFamily, a_saved_tiny_checkpoint) == []

For whoever writes a method (`docs/extending/adding-a-method.md`)::

    assert testing.of_method(MyMethod) == []

`clip` and `query` make the noise that methods are tried on, for tests of what a method chooses.

A point is a function below that yields what is wrong; the first thing of each is told. Models should be tiny, random,
in float32 and on a CPU. Not checked: what only the family's published code can say, such as whether its towers compute
the right numbers; the family's own tests compare those.
"""

from __future__ import annotations

from omnicli.testing.clips import clip, query
from omnicli.testing.families import of_class, of_folder, of_model
from omnicli.testing.methods import of_method
from omnicli.testing.trial import Stock

__all__ = ["Stock", "clip", "of_class", "of_folder", "of_method", "of_model", "query"]

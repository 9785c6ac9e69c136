"""Model families by name, and what is known of them without their code.

A family is a file in ``models/families/`` that names its class as ``MODEL``, or an entry point in the group
``omnicli.models``. Its facts, which plans are made of, are the file of the same name in ``models/facts/`` that names
their class as ``FACTS``, or an entry point of the same name in the group ``omnicli.facts``.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from omnicli.config.registry import Registry, modules, sources
from omnicli.errors import ConfigError

if TYPE_CHECKING:
    from omnicli.models.base import OmniModel
    from omnicli.models.facts.base import Facts

MODEL_GROUP = "omnicli.models"
FACTS_GROUP = "omnicli.facts"


def families() -> Registry[OmniModel]:
    """Return the model families by name."""
    found = sources("omnicli.models.families", _named("MODEL"), MODEL_GROUP)
    return Registry("model family", "omnicli.models.base:OmniModel", found)


def facts() -> Registry[Facts]:
    """Return what is known of families without their code, by the families' names; a family need not have any."""
    known = set(modules("omnicli.models.facts")).intersection(modules("omnicli.models.families"))
    found = sources("omnicli.models.facts", _named("FACTS"), FACTS_GROUP, known)
    return Registry("facts of model family", "omnicli.models.facts.base:Facts", found)


def known_facts() -> list[type[Facts]]:
    """Return all `facts` that can be had; a package whose own cannot be imported hurts no other."""
    return list(facts().usable()[0].values())


def _named(constant: str) -> Any:
    def find(module: ModuleType) -> Any:
        try:
            return getattr(module, constant)
        except AttributeError:
            file = module.__name__.replace(".", "/") + ".py"
            raise ConfigError(f"{file} is no model family: it defines no {constant}") from None

    return find


__all__ = ["FACTS_GROUP", "MODEL_GROUP", "facts", "families", "known_facts"]

"""What a compression method is. Knows neither models nor files nor any method.

A method is one file in `methods` with one frozen dataclass deriving from `Compressor`; its fields are its
hyper-parameters and become YAML keys and ``--set`` names, the file's name (``_`` written ``-``) becomes the method's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Self

from omnicli.errors import ConfigError
from omnicli.types import LayerView, MediaTokens, Modality, Query, Selection
from omnicli.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

MODALITIES = ((Modality.VIDEO, "video"), (Modality.AUDIO, "audio"))
"""Modalities with the names that reports and settings use, in their fixed order."""

LAST_QUERY_ATTENTION = "last_query_attention"
"""In `Compressor.needs`: the layer's own attention is given in `LayerView.attention`."""

OUTPUT_ATTENTION = "output_attention"
"""The same, of the layer's projections applied once more to its output, as SEATS's released code takes it."""


@dataclass(frozen=True)
class Compressor:
    """A method that chooses which media tokens the LLM reads.

    A subclass overrides `compress` to choose before the LLM, `layers` and `prune` to choose inside it, or both.

    Attributes
    ----------
    needs : frozenset of str
        What has to be captured for it: ``saliency``, ``pair_saliency`` or ``pooled_saliency`` (one of them fills
        ``MediaTokens.saliency``), ``keys`` (encoders); ``last_query_attention`` or ``output_attention`` (LLM). A
        property where it depends on the settings.
    criterion : str
        What it goes by, in a few words; for the documentation.
    uses_question : bool
        Whether the question changes its choice; for the documentation, and for what can be kept between questions.
    clean_differs : str
        What the clean mode changes against the released code, and why; for the documentation.
    paper : str
        The source.
    name : str
        From the file's name.
    exclusive_fields : tuple of tuples of str
        Groups of fields that say the same thing in different ways. A later source (``--set`` after a preset) that sets
        a field of one group drops the earlier values of the other groups: ``retention`` replaces ``tokens``.
    acts_beside : mapping of str to tuple of str
        A field that acts only beside one of others. A later source that sets a field of a group without any of those
        drops its earlier value: ``retention_video`` replaces ``split`` too.
    not_carried : frozenset of str
        Fields that a preset of another method does not set where only the method is changed, because they cannot act.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    paper: ClassVar[str] = ""
    criterion: ClassVar[str] = ""
    clean_differs: ClassVar[str] = ""
    name: ClassVar[str] = ""
    exclusive_fields: ClassVar[tuple[tuple[str, ...], ...]] = ()
    acts_beside: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    not_carried: ClassVar[frozenset[str]] = frozenset()

    uses_question: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__module__.rpartition(".")[2].replace("_", "-")

    def __post_init__(self) -> None:
        problems = [*self.problems(), *ignored(self, self.idle())]
        if problems:
            raise ConfigError(problems)

    def problems(self) -> list[str]:
        """Return what is wrong with the fields' values, each beginning ``field: ``; empty if they are fine."""
        return []

    def idle(self) -> dict[str, str]:
        """Return the fields that cannot act whatever the clip, given the other fields, each with the reason.

        To set one of them is an error. Fields that say how to choose among tokens of which the budget happens to keep
        all are not among them: what they ask for is done.
        """
        return {}

    def idle_behind(self) -> dict[str, str]:
        """Return the fields that cannot act where another method chose before the LLM, each with the reason."""
        return {}

    @classmethod
    def with_retention(cls, retention: float, **fields: Any) -> Self:
        """Return the method with settings that keep the share ``retention`` (0..1] of the tokens, defaults elsewhere.

        Benchmarks and contract tests compare methods through it. A method without such a knob ignores it.
        """
        return cls(**fields)

    def bind(self, model_folder: Path) -> Self:
        """Return the method with whatever the model in ``model_folder`` ships for it; by default itself."""
        return self

    def compress(self, tokens: MediaTokens, query: Query) -> Selection:
        """Choose tokens before the LLM; by default all of them. Never modifies ``tokens``."""
        return everything(tokens)

    def layers(self, depth: int) -> tuple[int, ...]:
        """Return the layers (0-based, of ``depth``) after which `prune` is called."""
        return ()

    def prune(self, layer: int, view: LayerView) -> Tensor:
        """Return ascending indices (k,) int64 into ``view.media`` of the tokens to keep after ``layer``."""
        raise NotImplementedError(f"{self.name} names layers to prune after but has no prune()")

    def nominal(self, n_video: int, n_audio: int) -> tuple[float, float] | None:
        """Return the shares of picture and sound tokens that the settings ask for; None: they ask for none."""
        return None

    def entering(self, n_video: int, n_audio: int) -> tuple[int, int]:
        """Return how many of so many picture and sound tokens the settings let into the LLM."""
        shares = self.nominal(n_video, n_audio)
        if shares is None or type(self).compress is Compressor.compress:
            return n_video, n_audio
        return round(shares[0] * n_video), round(shares[1] * n_audio)

    def reads_first(self, depth: int) -> tuple[int, float] | None:
        """Return how many of the LLM's ``depth`` layers read the clip to choose from it, and in stretches of how long.

        In seconds; None: the LLM is not asked before the choice. For plans.
        """
        return None

    def late_removal(self, depth: int) -> int | None:
        """Return the layer (0-based, of ``depth``) after which all media tokens go; None: never."""
        return None

    def keeps_kv(self) -> bool:
        """Return whether layers keep keys and values of the tokens dropped after them, for what is generated to read.

        Where they do, the cache holds every layer's own number of tokens; where not, only the last survivors'.
        """
        return True

    def params(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


def ignored(method: Compressor, idle: Mapping[str, str]) -> list[str]:
    """Return a line for each field of ``idle``, with its reason, that has another value than its default."""
    return [f"{f.name}: {idle[f.name]}" for f in dataclasses.fields(method) if f.name in idle and _set(method, f)]


def _set(method: Compressor, field: dataclasses.Field[Any]) -> bool:
    return bool(getattr(method, field.name) != field.default)


def acts(cls: type[Compressor]) -> str:
    """Return where a method works: before the LLM, inside it, or both."""
    where = [
        place
        for name, place in (("compress", "before the LLM"), ("prune", "inside the LLM"))
        if getattr(cls, name) is not getattr(Compressor, name)
    ]
    return " and ".join(where) or "-"


def everything(tokens: MediaTokens, **report: Any) -> Selection:
    """Return the selection of all tokens, with budgets in its report."""
    indices = torch.arange(len(tokens), device=tokens.features.device)
    return Selection(indices, report={"budget": counts(tokens), **report})


def attention_in(view: LayerView) -> Tensor:
    """Return the last token's attention (n,) to the media tokens; `ValueError` where ``needs`` did not ask for it."""
    if view.attention is None:
        raise ValueError(f"no attention: {LAST_QUERY_ATTENTION} or {OUTPUT_ATTENTION} must be in the method's needs")
    return view.attention


def counts(tokens: MediaTokens) -> dict[str, int]:
    """Return the number of tokens of each modality: ``{"video": n, "audio": m}``."""
    return {name: tokens.count(modality) for modality, name in MODALITIES}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


__all__ = [
    "LAST_QUERY_ATTENTION",
    "MODALITIES",
    "OUTPUT_ATTENTION",
    "Compressor",
    "acts",
    "attention_in",
    "counts",
    "everything",
    "ignored",
]

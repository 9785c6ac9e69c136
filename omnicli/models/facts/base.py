"""What planning needs of a model family: sizes from ``config.json`` and how many tokens and positions media become.

Pure arithmetic. A family is a subclass of `Facts`; what it is called and which sizes were released are class
attributes. Knows no weights.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from omnicli.errors import ModelError
from omnicli.models.facts.dimensions import Dimensions

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MIN_PIXELS, MAX_PIXELS = 128 * 28 * 28, 768 * 28 * 28
"""Per frame: what the stock processor class sets, whatever the checkpoint's picture limits are."""
_IMAGE_LIMITS = (3136, 12_845_056)  # written in the released preprocessor files; the stock class overrides them


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint's ``preprocessor_config.json`` says about pictures."""

    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS

    @classmethod
    def read(cls, folder: Path, default: Preprocessing | None = None) -> Preprocessing:
        """Read a checkpoint folder; what is missing is the family's ``default`` (None: Qwen2.5-Omni's)."""
        default = default or cls()
        file = folder / "preprocessor_config.json"
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        size = data.get("size") or {}
        limits = (
            int(size.get("shortest_edge") or data.get("min_pixels") or default.min_pixels),
            int(size.get("longest_edge") or data.get("max_pixels") or default.max_pixels),
        )
        if limits == _IMAGE_LIMITS:
            limits = (default.min_pixels, default.max_pixels)
        mean, std = data.get("image_mean") or default.mean, data.get("image_std") or default.std
        return cls(tuple(mean), tuple(std), *limits)


@dataclass(frozen=True)
class Tower:
    """The sizes of an encoder that its working memory depends on.

    Attributes
    ----------
    hidden_size, intermediate_size, heads : int
        Of its transformer.
    mlp_matrices : int
        3 with a gate, else 2.
    """

    hidden_size: int
    intermediate_size: int
    heads: int
    mlp_matrices: int = 2

    @property
    def position_values(self) -> int:
        """Values alive per position at the widest point of a layer: the residual, its norm, and the MLP or q, k, v.

        Counted from the layer loops of the families: attention holds q, k, v, their rotated or transposed copies and
        the mixture; the MLP holds ``mlp_matrices`` tensors of its width, activation included.
        """
        return 2 * self.hidden_size + max(7 * self.hidden_size, self.mlp_matrices * self.intermediate_size)

    @property
    def key_width(self) -> int:
        """Width of a captured key: the mean over heads."""
        return self.hidden_size // self.heads


@dataclass(frozen=True)
class Facts(abc.ABC):
    """A model as planning sees it.

    Attributes
    ----------
    llm : Dimensions
    max_position : int
        Trained context in positions.
    window_s, positions_per_s, audio_tokens_per_s : float
        Temporal block in seconds; rotary positions and sound tokens per second.
    frame_group, patch, merge, video_batch : int
        Frames per token group; side of a patch in pixels, of a cell in patches; most frames encoded at once.
    stem_values : int
        Values that the sound tower's convolutions hold per mel frame at their widest.
    levels : int
        Extra sets of features per picture token (deepstack).
    experts_per_token : int
        Experts that work on a token; 0: the layers have one MLP.
    tied_head : bool
        The head is the embeddings, and has no weights of its own.
    vision, audio : Tower
    preprocessing : Preprocessing
    mel_bands : int
    """

    family: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    short_names: ClassVar[dict[str, str]]
    dummies: ClassVar[dict[str, str]]
    """Names that may follow ``dummy:``, and short names of released sizes -> size."""
    parameters: ClassVar[dict[str, int]]
    """Weights that are loaded, by size; for names whose files are not here. `omnicli.testing` counts them."""
    loads: ClassVar[tuple[str, ...]] = ("",)
    """Prefixes of the weights that are loaded from a checkpoint that has more; the first that is there counts."""
    skips: ClassVar[tuple[str, ...]] = ()
    """Prefixes of weights that are not."""
    audio_batch_s: ClassVar[float] = 30.0
    """Seconds of sound encoded at once."""
    audio_positions_per_s: ClassVar[float] = 50.0
    """Positions of the sound tower's transformer per second."""
    clocked: ClassVar[bool] = True
    """Whether positions follow time; else they count tokens."""
    nominal_fps: ClassVar[float] = 1.0
    """`OmniModel.nominal_fps`, which ``media.clock: nominal`` lays pictures out with."""
    through_host: ClassVar[bool] = True
    """Whether weights pass through host memory as a whole on their way to a device."""

    llm: Dimensions
    max_position: int
    window_s: float
    positions_per_s: float
    audio_tokens_per_s: float
    frame_group: int
    patch: int
    merge: int
    video_batch: int
    vision: Tower
    audio: Tower
    preprocessing: Preprocessing
    mel_bands: int
    stem_values: int
    levels: int = 0
    experts_per_token: int = 0
    tied_head: bool = False

    @classmethod
    def read(cls, name: str, config: Mapping[str, Any], preprocessing: Preprocessing | Path | None = None) -> Self:
        """Return the facts of a ``config.json``; `ModelError` if it lacks some.

        ``preprocessing``: the checkpoint's folder, or what it says about pictures; None: the family's own.
        """
        try:
            return cls._read(config, preprocessing)
        except (KeyError, TypeError) as error:
            raise ModelError(f"{name}: config.json is not that of a {cls.family}: no {error}") from None
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(f"{name}: its settings are not those of a {cls.family} ({error})") from None

    @classmethod
    @abc.abstractmethod
    def _read(cls, config: Mapping[str, Any], preprocessing: Preprocessing | Path | None) -> Self:
        """Do the work of `read`; what is missing may raise as it comes."""

    @classmethod
    @abc.abstractmethod
    def released(cls, size: str) -> Mapping[str, Any]:
        """Return the configuration of a released size, a value of ``dummies``."""

    @classmethod
    def known_weights(cls) -> dict[str, int]:
        """Return how many weights released models have, by short name, as far as somebody counted them."""
        sizes = {name: size for name, size in cls.dummies.items() if size in cls.parameters}
        return {name: cls.parameters[sizes[name]] for name in cls.short_names if name in sizes}

    @property
    def layer_matrices(self) -> tuple[tuple[int, int, int], ...]:
        """(how many, rows, columns) of a layer's matrices, which are what is quantised: projections, MLP or experts."""
        d, mlps = self.llm, self.llm.num_experts or 1
        width = d.intermediate_size // (self.experts_per_token or 1)
        queries_keys_values = (1, d.query_width + 2 * d.kv_width, d.hidden_size)
        output = (1, d.hidden_size, d.query_width)
        return queries_keys_values, output, (2 * mlps, width, d.hidden_size), (mlps, d.hidden_size, width)

    def llm_values(self) -> tuple[int, int]:
        """Return how many of the LLM's weights are quantised, and how many are not: embeddings and head."""
        return (
            self.llm.depth * sum(n * rows * columns for n, rows, columns in self.layer_matrices),
            (1 if self.tied_head else 2) * self.llm.vocab_size * self.llm.hidden_size,
        )

    @property
    def pixel_unit(self) -> int:
        """Frame sides are multiples of this many pixels."""
        return self.patch * self.merge

    @abc.abstractmethod
    def frame_size(
        self,
        width: int,
        height: int,
        n_frames: int | None = None,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_video_tokens: int | None = None,
    ) -> tuple[int, int]:
        """Return (height, width) in pixels to decode frames at; see `OmniModel.frame_size`."""

    def group_tokens(self, height: int, width: int) -> int:
        """Return the tokens of a group of frames of that size."""
        return (height // self.pixel_unit) * (width // self.pixel_unit)

    @abc.abstractmethod
    def audio_tokens(self, seconds: float) -> int:
        """Return the tokens that so much sound becomes."""

    def last_position(self, text: int, video_s: float | None, audio: int, tokens: int) -> int:
        """Return the largest rotary position of the media.

        Parameters
        ----------
        text : int
            Tokens before them.
        video_s : float or None
            Seconds from the start to the last group of frames; None: no pictures.
        audio, tokens : int
            Sound tokens, and all media tokens.
        """
        video = -1 if video_s is None else int(video_s * self.positions_per_s)
        return text + max(video, audio - 1)

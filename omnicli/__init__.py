"""omni: questions about hour-long films, answered on one machine.

    import omnicli

    answer = omnicli.ask("film.mp4", "Who speaks last?", evidence=True)
    print(answer.answer, answer.evidence)

    model = omnicli.load_model("pocket")  # once for many films
    config = omnicli.load_config("avoc", ["media.fps=2", "avoc.tokens=2048"])
    answers = omnicli.ask("film.mp4", ["What is shown?", "Who speaks last?"], config, model)

Everything here is imported at its first use: importing this package imports neither torch nor transformers.
"""

from omnicli.version import __version__

TYPE_CHECKING = False  # as in typing, whose import would take a fifth of the time
if TYPE_CHECKING:
    from omnicli.answer.answer import Answer
    from omnicli.compress.base import Compressor
    from omnicli.config.config import load_config
    from omnicli.config.registry import methods
    from omnicli.models.loading import load_model
    from omnicli.pipeline import ask
    from omnicli.types import MediaTokens, Selection

_HOMES = {
    "Answer": "omnicli.answer.answer",
    "Compressor": "omnicli.compress.base",
    "MediaTokens": "omnicli.types",
    "Selection": "omnicli.types",
    "ask": "omnicli.pipeline",
    "load_config": "omnicli.config.config",
    "load_model": "omnicli.models.loading",
    "methods": "omnicli.config.registry",
}

__all__ = [
    "Answer",
    "Compressor",
    "MediaTokens",
    "Selection",
    "__version__",
    "ask",
    "load_config",
    "load_model",
    "methods",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

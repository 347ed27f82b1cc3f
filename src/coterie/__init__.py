"""coterie: run, train and look inside sparse mixture-of-experts language models.

`import coterie` takes milliseconds: the public names, and torch with them, are imported at first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coterie.api import Completion, Delta, LanguageModel, RoutingTrace, load
    from coterie.config import ModelConfig, RouterConfig
    from coterie.errors import (
        CheckpointError,
        ConfigError,
        ContextError,
        CoterieError,
        DataError,
        DownloadError,
        RecipeError,
        RequestError,
        ResourceError,
        TokenizerError,
        UnsafeFileError,
    )

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "Completion",
    "ConfigError",
    "ContextError",
    "CoterieError",
    "DataError",
    "Delta",
    "DownloadError",
    "LanguageModel",
    "ModelConfig",
    "RecipeError",
    "RequestError",
    "ResourceError",
    "RouterConfig",
    "RoutingTrace",
    "TokenizerError",
    "UnsafeFileError",
    "load",
]
_HOME = {
    "Completion": "coterie.api",
    "Delta": "coterie.api",
    "LanguageModel": "coterie.api",
    "ModelConfig": "coterie.config",
    "RouterConfig": "coterie.router_config",
    "RoutingTrace": "coterie.api",
    "load": "coterie.api",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'coterie' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME.get(name, "coterie.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

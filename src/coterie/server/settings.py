"""Every limit of the server with its default: from the flags of `coterie serve`, then `--config FILE.toml`.

The file holds the same names, dashes or underscores, and a table [models] of name = "folder".
A flag wins over the file.
"""

import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any, get_args, get_type_hints

from coterie.errors import ConfigError, nearest

__all__ = ["Settings", "is_loopback", "parse_seconds", "read_config"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_POSITIVE = {  # what would make no sense, or no server, at 0
    *("max_body", "max_header", "max_connections", "max_queue_requests", "max_queue_tokens", "max_n", "max_live"),
    *("per_key_in_flight", "max_tokens_default", "reader_buffer", "header_timeout", "body_timeout", "queue_timeout"),
    *("first_token_timeout", "total_timeout", "keep_alive", "send_timeout", "watchdog", "ping_interval"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Sizes in bytes, times in seconds. Raises `ConfigError` on a wrong type or bound."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    api_key_file: str | None = None
    allowed_hosts: tuple[str, ...] = ()  # besides localhost, 127.0.0.1 and [::1]
    cors_origins: tuple[str, ...] = ()  # exact; nobody by default
    access_log: bool = True

    max_body: int = 4 << 20
    max_header: int = 16 << 10
    max_connections: int = 1000
    max_queue_requests: int = 256  # waiting, not those being written
    max_queue_tokens: int = 262_144  # of prompts that wait; one prompt alone may be longer
    max_n: int = 16
    max_tokens_default: int = 4096  # where the request names none, at most so many (and no more than the context)
    per_key_in_flight: int = 64  # requests of one key and model
    reader_buffer: int = 256 << 10  # of an answer that its reader does not take

    header_timeout: float = 10.0
    body_timeout: float = 30.0
    queue_timeout: float = 60.0
    first_token_timeout: float = 300.0
    total_timeout: float = 600.0
    keep_alive: float = 5.0
    send_timeout: float = 30.0
    ping_interval: float = 15.0  # comments in a stream that has nothing to say yet
    drain: float = 30.0
    watchdog: float = 60.0  # a step longer than that makes /ready 503
    idle_unload: float | None = None

    max_live: int = 32  # samples decoded together
    cache_gb: float | None = None  # of keys and values; None: chosen from the memory that is free
    cache_tokens: int | None = None
    cache_type: str = "auto"  # or "int8"
    speculate: bool = False

    strict_api: bool = False  # refuse fields that nothing reads
    tool_emulation: bool = False
    expert_edits: bool = True  # `experts: {"ban": ...}` in requests

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            value = _typed(f.name, getattr(self, f.name), hints[f.name])
            object.__setattr__(self, f.name, value)
            _check_bounds(f.name, value)
        if self.cache_type not in ("auto", "int8"):
            raise ConfigError(f"cache_type is {self.cache_type!r}, expected 'auto' or 'int8'")
        if self.port > 65535:
            raise ConfigError(f"port is {self.port}, expected 0 (any free one) to 65535")
        for origin in self.cors_origins:
            if origin == "*" or not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                raise ConfigError(
                    f"cors_origins has {origin!r}, expected an exact origin such as 'https://example.org' "
                    "(no path; a wildcard is never allowed)"
                )

    def updated(self, values: Mapping[str, Any]) -> "Settings":
        """With these values; an unknown name is an error that names the nearest."""
        names = [f.name for f in fields(self)]
        for name in values:
            if name not in names:
                raise ConfigError(f"{name!r} is not a setting of serve{nearest(name, names)}")
        return replace(self, **values)


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings and the models of a TOML file. Raises `ConfigError`."""
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: not TOML: {e}") from None
    models = document.pop("models", {})
    if not isinstance(models, dict) or not all(isinstance(v, str) for v in models.values()):
        raise ConfigError(f'{path}: [models] holds something else than name = "folder"')
    values = {key.replace("-", "_"): value for key, value in document.items()}
    known = [f.name for f in fields(Settings)]
    for key in values:
        if key not in known:
            raise ConfigError(f"{path}: {key!r} is not a setting of serve{nearest(key, [*known, 'models'])}")
    return values, models


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_seconds(name: str, text: str) -> float:
    """`"30m"` as 1800.0; a number alone is seconds."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    try:
        seconds = float(number) * _UNITS[unit]
    except ValueError:
        seconds = float("nan")
    if not isfinite(seconds) or seconds < 0:
        raise ConfigError(f"{name} is {text!r}, expected a time such as 45s, 30m or 2h")
    return seconds


def _typed(name: str, value: Any, hint: Any) -> Any:
    """The value in the type of its field: a list becomes a tuple, `"30m"` seconds, a whole number does for any."""
    if value is None and type(None) in get_args(hint):
        return None
    kinds = [k for k in (get_args(hint) or (hint,)) if k is not type(None)]
    if tuple in kinds or hint == tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise ConfigError(f"{name} is {value!r}, expected a list of texts")
        return tuple(value)
    if float in kinds and isinstance(value, str):
        return parse_seconds(name, value)
    if float in kinds and type(value) is int:
        return float(value)
    if type(value) not in kinds:
        words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise ConfigError(f"{name} is {value!r}, expected {words[kinds[0]]}")
    return value


def _check_bounds(name: str, value: Any) -> None:
    if type(value) not in (int, float):
        return
    least = 1 if name in _POSITIVE and type(value) is int else 0
    is_enough = value > 0 if name in _POSITIVE else value >= 0
    if not isfinite(value) or not is_enough:
        raise ConfigError(f"{name} is {value}, expected {'more than 0' if least or name in _POSITIVE else '0 or more'}")

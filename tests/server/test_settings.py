import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from coterie.errors import ConfigError
from coterie.server.settings import Settings, is_loopback, parse_seconds, read_config


def test_a_file_and_flags(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('max-live = 4\nidle_unload = "30m"\nallowed-hosts = ["gpu.lan"]\n[models]\nsmall = "/x"\n')
    values, models = read_config(file)
    settings = Settings().updated(values).updated({"max_live": 5, "total_timeout": 10})
    assert (settings.max_live, settings.idle_unload, settings.allowed_hosts) == (5, 1800.0, ("gpu.lan",))
    assert type(settings.total_timeout) is float and models == {"small": "/x"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_lives": 3}, "did you mean 'max_live'"),
        ({"max_live": 0}, "max_live is 0, expected more than 0"),
        ({"max_live": True}, "max_live is True, expected a whole number"),
        ({"max_live": 1.5}, "expected a whole number"),
        ({"port": 70000}, "expected 0 (any free one) to 65535"),
        ({"port": -1}, "expected 0 or more"),
        ({"drain": "soon"}, "expected a time such as"),
        ({"drain": float("nan")}, "drain is nan"),
        ({"drain": float("inf")}, "drain is inf"),
        ({"speculate": "yes"}, "expected true or false"),
        ({"host": 3}, "expected text"),
        ({"cors_origins": "https://a.b"}, "expected a list of texts"),
        ({"cors_origins": ["*"]}, "a wildcard is never allowed"),
        ({"cors_origins": ["https://a.b/"]}, "no path"),
        ({"cache_type": "int4"}, "expected 'auto' or 'int8'"),
        ({"api_key_file": 1}, "expected text"),
    ],
)
def test_what_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as e:
        Settings().updated(values)
    assert said in str(e.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_live = ", "not TOML"),
        ("max-lives = 3", "did you mean 'max_live'"),
        ("[model]\na = 1", "did you mean 'models'"),
        ("[models]\na = 1", 'name = "folder"'),
        ("models = 3", 'name = "folder"'),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as e:
        read_config(file)
    assert said in str(e.value) and str(file) in str(e.value)


def test_times() -> None:
    assert [parse_seconds("x", t) for t in ("1.5", "45s", "30m", "2h", "1d")] == [1.5, 45, 1800, 7200, 86400]
    for text in ("", "m", "-1s", "1e999", "3 weeks", "nan"):
        with pytest.raises(ConfigError):
            parse_seconds("x", text)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        *(("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.9.9.9", True), ("0.0.0.0", False)),
        *(("::", False), ("192.168.1.2", False), ("example.org", False), ("localhost.evil", False), ("", False)),
    ],
)
def test_loopback(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local


def test_the_page_names_every_setting_with_its_default() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", page, re.MULTILINE))
    for f in fields(Settings):
        shown = rows.pop(f.name).strip("`")
        expected = None if shown == "none" else tomllib.loads(f"x = {shown}")["x"]
        assert getattr(Settings(), f.name) == (tuple(expected) if isinstance(expected, list) else expected), f.name
    assert rows == {}

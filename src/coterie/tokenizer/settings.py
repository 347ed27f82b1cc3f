"""The small JSON files beside a tokenizer: what begins and ends a text, which tokens were added, the chat template."""

import json
import re
from pathlib import Path
from typing import Any

from coterie.errors import TokenizerError
from coterie.tokenizer.marks import is_mark

__all__ = ["added_tokens", "chat_template", "is_legacy", "read_json", "special_names", "wanted_vocab_size"]

_LARGEST_SETTINGS = 64 << 20


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; `TokenizerError` where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON ({error}); fetch the file again") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def special_names(folder: Path) -> dict[str, str]:
    """{"bos_token": "<s>", "eos_token": "</s>"} as far as the folder's settings name them."""
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):  # the later one counts more
        content = _read_if_there(folder / file)
        for key in ("bos_token", "eos_token"):
            value = content.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                names[key] = value
    return names


def added_tokens(folder: Path) -> dict[str, int]:
    """Tokens added outside the SentencePiece model, text -> id: marks only, as words would have to be matched."""
    found = _read_if_there(folder / "added_tokens.json")
    decoder = _read_if_there(folder / "tokenizer_config.json").get("added_tokens_decoder")
    for i, token in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(token, dict) and isinstance(token.get("content"), str) and re.fullmatch("[0-9]{1,7}", i):
            found[token["content"]] = int(i)
    return {text: i for text, i in found.items() if is_mark(text) and isinstance(i, int) and 0 <= i < 1 << 22}


def chat_template(folder: Path) -> str | None:
    """The text of the folder's default chat template, or None."""
    path = folder / "chat_template.jinja"
    if path.is_file() and path.stat().st_size <= _LARGEST_SETTINGS:
        return path.read_text(encoding="utf-8", errors="replace")
    for file in ("chat_template.json", "tokenizer_config.json"):
        template = _read_if_there(folder / file).get("chat_template")
        if isinstance(template, list):  # several by name, as [{"name": "default", "template": "..."}]
            named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            template = named.get("default")
        if isinstance(template, str):
            return template
    return None


def is_legacy(folder: Path) -> bool:
    """Hugging Face's `legacy` setting: without one, a SentencePiece tokenizer is (only False is not)."""
    return _read_if_there(folder / "tokenizer_config.json").get("legacy") is not False


def wanted_vocab_size(folder: Path) -> int | None:
    """The vocabulary size in config.json or params.json, or None."""
    for file in ("config.json", "params.json"):
        size = _read_if_there(folder / file).get("vocab_size")
        if isinstance(size, int):
            return size
    return None


def _read_if_there(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > _LARGEST_SETTINGS:
        raise TokenizerError(f"{path} has {path.stat().st_size:,} bytes; settings have at most {_LARGEST_SETTINGS:,}")
    return read_json(path)

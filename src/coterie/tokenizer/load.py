"""A folder (or one file) to a tokenizer, by what the files hold.

Where a folder has a SentencePiece model and a `tokenizer.json`, the SentencePiece model is read: it is the original,
and the JSON a conversion of it that differs in corners (text after a mark, broken bytes). The JSON is read after all
where it knows more tokens: fine-tunes add `<|im_start|>` there and leave the old model beside it. Names only say where
to look.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.errors import TokenizerError
from coterie.tokenizer.huggingface import HuggingFaceTokenizer
from coterie.tokenizer.mistral import TekkenTokenizer
from coterie.tokenizer.protocol import Tokenizer
from coterie.tokenizer.sentencepiece import SentencePieceTokenizer
from coterie.tokenizer.settings import added_tokens, is_legacy, read_json, special_names, wanted_vocab_size

__all__ = ["load_tokenizer", "tokenizer_files"]

_CANDIDATE = re.compile(r".*\.model(\.v\d+(m\d+)?)?|(tokenizer|tekken)[^/]*\.json")
_BESIDE = re.compile(
    r"(tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|merges\.txt|chat_template\.(jinja|json)"
)
_LARGEST_MODEL = 64 << 20  # bytes; Mixtral's has 0.5 MB, the largest published ones 4 MB
_LARGEST_JSON = 256 << 20  # Mistral's tekken files have 15 to 20 MB


@dataclass(frozen=True)
class _Found:
    """The tokenizer files of a folder by kind."""

    models: tuple[Path, ...]  # SentencePiece
    tekken: tuple[Path, ...]
    json: tuple[tuple[Path, dict[str, Any]], ...]  # tokenizer.json, whatever its name, and what it holds


def tokenizer_files(folder: Path) -> list[Path]:
    """Every file of `folder` that belongs to the tokenizer and its chat form, for copying beside converted weights."""
    return sorted(
        p for p in folder.iterdir() if p.is_file() and (_CANDIDATE.fullmatch(p.name) or _BESIDE.fullmatch(p.name))
    )


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder, or in one tokenizer file.

    `TokenizerError` where there is none (says what was looked for), where a file is too large, cut off or unknown.
    """
    if folder.is_file():
        found, folder = _sort([folder]), folder.parent
    elif folder.is_dir():
        found = _sort([p for p in tokenizer_files(folder) if not _BESIDE.fullmatch(p.name)])
    else:
        raise TokenizerError(f"{folder} does not exist; expected a model folder or a tokenizer file")
    special = special_names(folder)
    if found.models:
        return _from_models(found, folder, special)
    if found.tekken:
        return TekkenTokenizer(found.tekken[-1])
    if found.json:
        path, content = found.json[0]
        return HuggingFaceTokenizer(content, source=str(path), special=special)
    raise TokenizerError(
        f"{folder} has no tokenizer: looked for a SentencePiece model (tokenizer.model), tekken.json and "
        "tokenizer.json; token ids work without one, text needs it"
    )


def _from_models(found: _Found, folder: Path, special: Mapping[str, str]) -> Tokenizer:
    """The SentencePiece model, with tokens added outside it, or the `tokenizer.json` that holds more tokens than it."""
    path = _best_model(found.models, folder)
    model = SentencePieceTokenizer(
        path.read_bytes(), source=str(path), added=added_tokens(folder), special=special, legacy=is_legacy(folder)
    )
    for other, content in found.json:
        if _n_tokens(content) > model.n_pieces:
            return HuggingFaceTokenizer(content, source=str(other), special=special)
    return model


def _best_model(models: tuple[Path, ...], folder: Path) -> Path:
    """Of several different models, the one with as many pieces as the configuration says, else the last by name."""
    different = {p.read_bytes(): p for p in models}
    if len(different) > 1 and (wanted := wanted_vocab_size(folder)) is not None:
        for data, path in different.items():
            if SentencePieceTokenizer(data, source=str(path)).vocab_size == wanted:
                return path
    return models[-1]


def _n_tokens(content: Mapping[str, Any]) -> int:
    """How many ids a `tokenizer.json` knows: one more than the largest."""
    model = content.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    n = len(vocab) if isinstance(vocab, dict | list) else 0
    added = content.get("added_tokens")
    ids = [t.get("id") for t in added if isinstance(t, dict)] if isinstance(added, list) else []
    return max([n, *(i + 1 for i in ids if isinstance(i, int))])


def _sort(paths: list[Path]) -> _Found:
    """The files by kind, each by its content; JSON that is no tokenizer is left out."""
    models, tekken, json = [], [], []
    for path in paths:
        start = _start(path)
        if start.lstrip()[:1] != b"{":
            models.append(path)
        elif b'"token_bytes"' in start:  # tekken files are large: mistral-common shall be the only one to parse them
            tekken.append(path)
        else:
            content = read_json(path)
            if isinstance(content.get("vocab"), list) and isinstance(content.get("config"), dict):
                tekken.append(path)
            elif isinstance(content.get("model"), dict):
                json.append((path, content))
    return _Found(tuple(models), tuple(tekken), tuple(json))


def _start(path: Path) -> bytes:
    """The first bytes of a file that may be read: SentencePiece or JSON, of a sensible size."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(1 << 16)
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from None
    if start.startswith(b"version https://git-lfs"):
        raise TokenizerError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")
    is_json = start.lstrip()[:1] == b"{"
    largest = _LARGEST_JSON if is_json else _LARGEST_MODEL
    if size > largest:
        raise TokenizerError(f"{path} has {size:,} bytes; a tokenizer file of its kind has at most {largest:,}")
    if not is_json and start[:1] != b"\n":  # field 1 (a piece), length-delimited: how every SentencePiece model begins
        raise TokenizerError(f"{path} is neither a SentencePiece model nor JSON; fetch the file again")
    return start

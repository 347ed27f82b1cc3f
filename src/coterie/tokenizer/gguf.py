"""The vocabulary in a GGUF file's keys as a tokenizer: the same ids as the file it was made from.

`llama` is SentencePiece's BPE: the model file is built anew and read as any other. `gpt2` is byte-level BPE with
merges; the pattern that cuts text into words is not in the file but named by `tokenizer.ggml.pre`, and the names of
this family's models are known here. Whether a text begins with a BOS is not asked of the file: it does, as everywhere.
"""

import json
from collections.abc import Mapping
from typing import Any

from coterie.errors import TokenizerError, nearest
from coterie.tokenizer.huggingface import HuggingFaceTokenizer
from coterie.tokenizer.protocol import Tokenizer
from coterie.tokenizer.sentencepiece import SentencePieceTokenizer
from coterie.tokenizer.sentencepiece_build import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, build_model

__all__ = ["PATTERNS", "gguf_tokenizer", "vocabulary_files"]

_KEY = "tokenizer.ggml."
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "tekken": _TEKKEN}
_LARGEST_SCORE = 3.4e38  # of float32
_DEFAULT_IDS = {"unknown": 0, "bos": 1, "eos": 2}  # llama.cpp's, where a file does not say


def gguf_tokenizer(metadata: Mapping[str, Any], source: str) -> Tokenizer | None:
    """The tokenizer in the keys of the file `source`, or None where it has no vocabulary; `TokenizerError`."""
    kind = metadata.get(f"{_KEY}model")
    if kind is None or kind in ("none", "no_vocab"):
        return None
    if kind not in ("llama", "gpt2"):
        raise TokenizerError(f"{source}: {_KEY}model is {str(kind)[:40]!r}, expected 'llama' or 'gpt2'")
    tokens = metadata.get(f"{_KEY}tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(t, bytes) for t in tokens):
        raise TokenizerError(f"{source}: {_KEY}tokens is missing or no list of strings")
    where = f"{source} (vocabulary)"
    if kind == "llama":
        return SentencePieceTokenizer(_sentencepiece(metadata, tokens, source), source=where)
    content, special = _byte_level(metadata, tokens, source)
    return HuggingFaceTokenizer(content, source=where, special=special)


def vocabulary_files(metadata: Mapping[str, Any], source: str) -> dict[str, bytes]:
    """The same as the files that a model folder has: name -> contents; with the chat template, where there is one."""
    files: dict[str, bytes] = {}
    tokens, template = metadata.get(f"{_KEY}tokens"), metadata.get("tokenizer.chat_template")
    if gguf_tokenizer(metadata, source) is not None and isinstance(tokens, list):
        if metadata[f"{_KEY}model"] == "llama":
            files["tokenizer.model"] = _sentencepiece(metadata, tokens, source)
        else:
            content, special = _byte_level(metadata, tokens, source)
            settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
            files["tokenizer.json"] = json.dumps(content, ensure_ascii=False).encode()
            files["tokenizer_config.json"] = json.dumps(settings, ensure_ascii=False, indent=2).encode()
    if isinstance(template, str):
        files["chat_template.jinja"] = template.encode()
    return files


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[bytes], source: str) -> bytes:
    """The SentencePiece model file that the keys stand for."""
    scores = _numbers(metadata, "scores", len(tokens), source)
    if scores is None:
        raise TokenizerError(f"{source}: {_KEY}scores is missing, and without it a SentencePiece vocabulary is no good")
    if wrong := [score for score in scores if not abs(score) <= _LARGEST_SCORE]:
        raise TokenizerError(f"{source}: {_KEY}scores has {wrong[0]}, expected float32 numbers")
    types = _types(metadata, tokens, source)
    special = _special(metadata, tokens, types, source)
    charsmap = metadata.get(f"{_KEY}precompiled_charsmap")
    if charsmap is not None and (not hasattr(charsmap, "tobytes") or charsmap.itemsize != 1):
        raise TokenizerError(f"{source}: {_KEY}precompiled_charsmap is no list of bytes")
    return build_model(
        tokens,
        scores,
        types,
        special,
        add_dummy_prefix=metadata.get(f"{_KEY}add_space_prefix") is not False,
        remove_extra_whitespaces=metadata.get(f"{_KEY}remove_extra_whitespaces") is True,
        charsmap=b"" if charsmap is None else charsmap.tobytes(),
    )


def _types(metadata: Mapping[str, Any], tokens: list[bytes], source: str) -> list[int]:
    types = _numbers(metadata, "token_type", len(tokens), source)
    if types is None:
        return [BYTE if len(t) == 6 and t.startswith(b"<0x") and t.endswith(b">") else NORMAL for t in tokens]
    if wrong := [t for t in types if t not in range(1, 7)]:
        raise TokenizerError(f"{source}: {_KEY}token_type has the value {wrong[0]}, expected 1 to 6")
    return [int(t) for t in types]


def _special(metadata: Mapping[str, Any], tokens: list[bytes], types: list[int], source: str) -> dict[str, int]:
    """The ids of the special pieces; their types are set to what they are."""
    found: dict[str, int] = {}
    for key, name in (("unknown", "unk"), ("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        token_id = metadata.get(f"{_KEY}{key}_token_id", _DEFAULT_IDS.get(key))
        if token_id is None:
            continue
        if type(token_id) is not int or not 0 <= token_id < len(tokens):
            raise TokenizerError(f"{source}: {_KEY}{key}_token_id is {token_id!r}, and there are {len(tokens)} tokens")
        if token_id not in found.values():
            found[name] = token_id
    for i, kind in enumerate(types):
        if kind == UNKNOWN and i != found["unk"]:
            types[i] = CONTROL
    types[found["unk"]] = UNKNOWN
    for name in ("bos", "eos"):
        if name in found:
            types[found[name]] = CONTROL
    return found


def _byte_level(metadata: Mapping[str, Any], tokens: list[bytes], source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The tokenizer.json that the keys stand for, and the names of its special tokens."""
    pre, merges = metadata.get(f"{_KEY}pre"), metadata.get(f"{_KEY}merges")
    if not isinstance(pre, str) or pre not in PATTERNS:
        raise TokenizerError(
            f"{source}: {_KEY}pre is {str(pre)[:40]!r}, which is not known; expected one of {', '.join(PATTERNS)}"
            f"{nearest(str(pre), PATTERNS)}"
        )
    if not isinstance(merges, list):
        raise TokenizerError(f"{source}: {_KEY}merges is missing")
    types = _types(metadata, tokens, source)
    texts = [_text(t, source) for t in tokens]
    if len(set(texts)) != len(texts):
        raise TokenizerError(f"{source}: a token is twice in {_KEY}tokens")
    pairs = [_text(m, source).split(" ") for m in merges]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": texts[i], "special": kind != USER_DEFINED, **flags}
            for i, kind in enumerate(types)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERNS[pre]}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {text: i for i, text in enumerate(texts)},
            "merges": [pair for pair in pairs if len(pair) == 2],
        },
    }
    ids = {key: metadata.get(f"{_KEY}{key}_token_id") for key in ("bos", "eos")}
    special = {f"{k}_token": texts[i] for k, i in ids.items() if isinstance(i, int) and 0 <= i < len(texts)}
    return content, special


def _numbers(metadata: Mapping[str, Any], key: str, n: int, source: str) -> list[Any] | None:
    values = metadata.get(_KEY + key)
    if values is None:
        return None
    if not hasattr(values, "tolist") or len(values) != n:
        raise TokenizerError(f"{source}: {_KEY}{key} should be a list of {n:,} numbers, one for each token")
    found: list[Any] = values.tolist()
    return found


def _text(raw: bytes, source: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise TokenizerError(f"{source}: the token {raw[:40]!r} is not UTF-8") from None

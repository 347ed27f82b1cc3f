"""A tokenizer as the keys of a GGUF file, from which llama.cpp makes the same ids. `gguf.py` is the way back."""

from collections.abc import Sequence
from typing import Any

from coterie.errors import TokenizerError
from coterie.tokenizer.gguf import PATTERNS
from coterie.tokenizer.huggingface import HuggingFaceTokenizer
from coterie.tokenizer.mistral import TekkenTokenizer
from coterie.tokenizer.protocol import Tokenizer
from coterie.tokenizer.sentencepiece import SentencePieceTokenizer
from coterie.tokenizer.sentencepiece_build import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from coterie.tokenizer.surface import byte_level_bytes

__all__ = ["vocabulary_keys"]

_KEY = "tokenizer.ggml."
_ENDS = ("eos", "eot", "eom")  # of a text, a turn, a message
_PAD_SCORE = -10000.0
Keys = dict[str, tuple[str, Any]]


def vocabulary_keys(
    tokenizer: Tokenizer | None,
    template: str | None,
    *,
    vocab_size: int,
    bos_id: int | None = None,
    eos_ids: Sequence[int] = (),
) -> Keys:
    """Key -> (type, value). Rows of the embedding beyond the vocabulary get unused tokens, as llama.cpp wants one each.

    Raises `TokenizerError` for a kind of tokenizer that a GGUF file cannot hold exactly.
    """
    keys: Keys = {f"{_KEY}model": ("string", "none")}
    ends = list(eos_ids)
    if tokenizer is not None:
        keys = _keys(tokenizer, vocab_size)
        bos_id = tokenizer.bos_id if bos_id is None else bos_id
        ends = ends or [i for i in (tokenizer.eos_id,) if i is not None]
    if len(ends) > len(_ENDS):
        raise TokenizerError(f"{len(ends)} tokens end a text, and a GGUF file can name {len(_ENDS)}")
    for name, token_id in (("bos", bos_id), *zip(_ENDS, ends, strict=False)):
        if token_id is not None:
            keys[f"{_KEY}{name}_token_id"] = ("u32", token_id)
    keys[f"{_KEY}add_bos_token"] = ("bool", bos_id is not None)
    keys[f"{_KEY}add_eos_token"] = ("bool", False)
    if template is not None:
        keys["tokenizer.chat_template"] = ("string", template)
    return keys


def _keys(tokenizer: Tokenizer, vocab_size: int) -> Keys:
    if tokenizer.vocab_size > vocab_size:
        raise TokenizerError(f"the tokenizer has {tokenizer.vocab_size} tokens, and the model {vocab_size} embeddings")
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _sentencepiece(tokenizer, vocab_size)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return _byte_level(tokenizer, vocab_size)
    if isinstance(tokenizer, TekkenTokenizer):
        return _tekken(tokenizer, vocab_size)
    raise _unknown(tokenizer)


def _sentencepiece(tokenizer: SentencePieceTokenizer, vocab_size: int) -> Keys:
    found = tokenizer.contents()
    if not found.is_bpe:
        raise TokenizerError("the tokenizer is a SentencePiece model of another kind than BPE, which is not written")
    added = {i: text for text, i in tokenizer.added.items()}
    tokens, scores, types = found.pieces, found.scores, found.types
    for i in range(len(tokens), vocab_size):
        tokens.append(added.get(i, f"[PAD{i}]").encode())
        scores.append(_PAD_SCORE)
        types.append(CONTROL if i in added else UNUSED)
    keys: Keys = {
        f"{_KEY}model": ("string", "llama"),
        f"{_KEY}pre": ("string", "default"),
        f"{_KEY}tokens": ("array string", tokens),
        f"{_KEY}scores": ("array f32", scores),
        f"{_KEY}token_type": ("array i32", types),
        f"{_KEY}unknown_token_id": ("u32", types.index(UNKNOWN)),
        f"{_KEY}add_space_prefix": ("bool", found.add_dummy_prefix),
    }
    if found.remove_extra_whitespaces:
        keys[f"{_KEY}remove_extra_whitespaces"] = ("bool", True)
    if found.charsmap:
        keys[f"{_KEY}precompiled_charsmap"] = ("array u8", list(found.charsmap))
    return keys


def _byte_level(tokenizer: HuggingFaceTokenizer, vocab_size: int) -> Keys:
    content = tokenizer.content
    model, pre = content.get("model"), content.get("pre_tokenizer")
    parts = pre.get("pretokenizers") if isinstance(pre, dict) else None
    first = parts[0] if isinstance(parts, list) and len(parts) == 2 and isinstance(parts[0], dict) else {}
    if not isinstance(model, dict) or model.get("type") != "BPE" or content.get("normalizer"):
        raise _unknown(tokenizer)
    name = _pattern_name((first.get("pattern") or {}).get("Regex"), tokenizer)
    texts, types = [f"[PAD{i}]" for i in range(vocab_size)], [UNUSED] * vocab_size
    for text, i in model["vocab"].items():
        texts[i], types[i] = text, NORMAL
    for token in content["added_tokens"]:
        texts[token["id"]], types[token["id"]] = token["content"], CONTROL if token["special"] else USER_DEFINED
    return _gpt2_keys(name, texts, types, [m if isinstance(m, str) else " ".join(m) for m in model["merges"]])


def _tekken(tokenizer: TekkenTokenizer, vocab_size: int) -> Keys:
    """A tekken file has no merges: whichever two neighbours make the piece of lowest rank are merged."""
    name = _pattern_name(tokenizer.pattern, tokenizer)
    letters = {byte: letter for letter, byte in byte_level_bytes().items()}
    contents = tokenizer.contents()
    texts = [c if isinstance(c, str) else "".join(letters[b] for b in c) for c in contents]
    types = [CONTROL if isinstance(c, str) else NORMAL for c in contents]
    ids = {c: i for i, c in enumerate(contents)}
    merges = []
    for i, c in enumerate(contents):
        pairs = [(ids[c[:at]], ids[c[at:]]) for at in range(1, len(c)) if c[:at] in ids and c[at:] in ids]
        merges += [f"{texts[a]} {texts[b]}" for a, b in sorted(pairs) if types[i] == NORMAL]
    pads = range(len(texts), vocab_size)
    return _gpt2_keys(name, texts + [f"[PAD{i}]" for i in pads], types + [UNUSED for _ in pads], merges)


def _pattern_name(pattern: Any, tokenizer: Tokenizer) -> str:
    for name, known in PATTERNS.items():
        if known == pattern:
            return name
    raise _unknown(tokenizer)


def _gpt2_keys(pre: str, texts: list[str], types: list[int], merges: list[str]) -> Keys:
    return {
        f"{_KEY}model": ("string", "gpt2"),
        f"{_KEY}pre": ("string", pre),
        f"{_KEY}tokens": ("array string", [text.encode() for text in texts]),
        f"{_KEY}token_type": ("array i32", types),
        f"{_KEY}merges": ("array string", [m.encode() for m in merges]),
    }


def _unknown(tokenizer: Tokenizer) -> TokenizerError:
    return TokenizerError(
        f"the tokenizer ({tokenizer.kind}) is of a kind that cannot be written into a GGUF file exactly; expected a "
        "SentencePiece model (tokenizer.model), a tekken file, or a byte-level tokenizer.json of Llama 3 or Mistral"
    )

"""The bytes of a trace file: header, blocks, tail, index, trailer. docs/traces.md states them one by one.

Nothing in a file is trusted: every count is bounded by the file's own size before anything is allocated, every part
has a checksum. What cannot be known when a recording begins (domains, documents, how many blocks) stands at the end.
Shapes: T tokens of a block, S spans of it, L sparse layers, K slots, E experts, V vocabulary.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from coterie.errors import DataError

__all__ = [
    "ALIGN", "BLOCK", "BLOCK_MAGIC", "FORMAT", "GUESS_UNUSED", "INDEX", "MAGIC", "MOST_BLOCK", "MOST_DOCUMENTS",
    "MOST_DOMAINS", "MOST_HEADER", "MOST_TAIL", "PREFIX", "TRAILER", "TRAILER_MAGIC", "UNUSED", "VERSION", "Form",
    "block_tokens", "column_sizes", "header_bytes", "parse_header",
]  # fmt: skip

FORMAT, VERSION = "coterie-trace", 1
MAGIC, TRAILER_MAGIC, BLOCK_MAGIC = b"\x89CTRACE\n", b"\nECARTC\x89", b"BLCK"
PREFIX = struct.Struct("<8sII")  # magic, bytes of the header, its checksum
BLOCK = struct.Struct("<4sIIIfIQII24x")  # magic, tokens, spans, flags, scale, checksums (payload), bytes, 0, own
INDEX = struct.Struct("<QQ")  # where a block begins, its tokens
TRAILER = struct.Struct("<QQQQQQII8s")  # tail: at, bytes, raw bytes; index: at; blocks; tokens; checksum; own; magic
ALIGN = 8  # columns begin at multiples of it, blocks at multiples of 64
MOST_HEADER, MOST_TAIL, MOST_BLOCK = 1 << 20, 1 << 26, 1 << 20  # bytes, bytes, tokens
MOST_DOCUMENTS, MOST_DOMAINS = 1 << 31, 1 << 15
UNUSED, GUESS_UNUSED = 1, 2  # flags: a block has a bitmap of unused slots, of experts or of guesses
_TARGET = 16 << 20  # bytes of a block that a writer aims at
_LARGEST = {"n_experts": 1 << 12, "top_k": 1 << 12, "n_layers": 1 << 10, "vocab_size": 1 << 22}


@dataclass(frozen=True, kw_only=True)
class Form:
    """What the header says: of which model a trace is and what it holds. `fingerprint` and `tokenizer` are digests."""

    model: str
    fingerprint: str
    tokenizer: str = ""
    n_experts: int
    top_k: int
    n_layers: int
    vocab_size: int
    has_logits: bool = False
    has_guesses: bool = False
    is_normalised: bool = True  # the weights of a token add up to 1

    def check(self, where: str) -> "Form":
        """Itself, or `DataError` for what no trace can have."""
        for f in fields(self):
            value = getattr(self, f.name)
            if type(value) is not f.type:
                raise DataError(f"{where}: {f.name} is {value!r}, which no trace has; record it again")
            if f.name in _LARGEST and not 1 <= value <= _LARGEST[f.name]:
                raise DataError(f"{where}: {f.name} is {value}, expected 1 to {_LARGEST[f.name]}; record it again")
        if self.top_k > self.n_experts:
            raise DataError(f"{where}: {self.top_k} experts a token of {self.n_experts}; record it again")
        return self

    @property
    def id_bits(self) -> int:
        """4 where there are at most 16 experts."""
        return 4 if self.n_experts <= 16 else 8 if self.n_experts <= 256 else 16

    @property
    def token_bytes(self) -> int:
        return 2 if self.vocab_size <= 1 << 16 else 4


def column_sizes(form: Form, n_tokens: int, n_spans: int, flags: int) -> dict[str, int]:
    """Bytes of each column of a block, in their order; each is padded to a multiple of `ALIGN`.

    Example: Mixtral's shape (L=32, K=2, E=8, V=32000), 1000 tokens in 2 spans: spans 32, tokens 2000, experts 32·1000,
    weights 32·2000: 98 bytes a token.
    """
    slots = n_tokens * form.top_k
    ids, bitmap = -(-slots * form.id_bits // 8), -(-slots // 8)
    sizes = {
        "spans": 16 * n_spans, "tokens": form.token_bytes * n_tokens, "experts": form.n_layers * ids,
        "weights": form.n_layers * slots,
    }  # fmt: skip
    if flags & UNUSED:
        sizes["unused"] = form.n_layers * bitmap
    if form.has_guesses:
        sizes["guesses"] = (form.n_layers - 1) * ids
        if flags & GUESS_UNUSED:
            sizes["guess_unused"] = (form.n_layers - 1) * bitmap
    if form.has_logits:
        sizes["logits"] = 2 * form.n_layers * n_tokens * form.n_experts
    return sizes


def block_tokens(form: Form) -> int:
    """How many tokens a writer puts into a block: of at most about 16 MB."""
    per_token = sum(column_sizes(form, 8, 0, UNUSED).values()) // 8 + 1
    return max(256, min(1 << 16, _TARGET // per_token))


def header_bytes(form: Form) -> bytes:
    """The beginning of a file, a multiple of 64 bytes long."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(form)}, ensure_ascii=False).encode()
    text += b" " * (-(len(text) + PREFIX.size) % 64)
    return PREFIX.pack(MAGIC, len(text), zlib.crc32(text)) + text


def parse_header(document: Mapping[str, Any], where: str) -> Form:
    """The form that the header's JSON states; `DataError` for another format or version."""
    if document.get("format") != FORMAT:
        raise DataError(f"{where} is no routing trace: expected one that 'coterie trace record' wrote")
    if document.get("version") != VERSION:
        version = str(document.get("version"))[:20]
        raise DataError(f"{where} is a trace of version {version}; this coterie reads {VERSION}: use the one it is of")
    names = [f.name for f in fields(Form)]
    if missing := [name for name in names if name not in document]:
        raise DataError(f"{where}: the header has no {missing[0]}; record it again")
    return Form(**{name: document[name] for name in names}).check(where)

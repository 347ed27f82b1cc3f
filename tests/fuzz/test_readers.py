"""Mutations of sound files, and noise, through every reader of files from strangers: an error of ours, or a result.

`make test` runs 10,000 executions of each reader, `make test-full` 100,000; hypothesis chooses the seeds and says which
one failed. Where atheris is installed, coverage leads the way: python tests/fuzz/test_readers.py gguf [OPTIONS OF
LIBFUZZER], one of gguf, safetensors, config, params, index.
"""

import copy
import json
import random
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from coterie.checkpoint.gguf import open_gguf
from coterie.checkpoint.gguf_write import WrittenTensor, write_gguf
from coterie.checkpoint.huggingface import config_from_json
from coterie.checkpoint.index import indexed_entries
from coterie.checkpoint.json_text import parse_object
from coterie.checkpoint.mistral import config_from_params
from coterie.checkpoint.names import canonical_shapes, file_shape, places
from coterie.checkpoint.safetensors import TensorSpec, read_entries, write_file
from coterie.config import ModelConfig
from coterie.errors import CheckpointError, ConfigError, TokenizerError
from coterie.tokenizer.gguf import gguf_tokenizer

DECLARED = (CheckpointError, ConfigError, TokenizerError)
A_BATCH = 100  # executions for each seed
CONFIG = ModelConfig(
    vocab_size=40, hidden_size=8, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, num_local_experts=2, max_position_embeddings=16,
)  # fmt: skip
HUGGINGFACE = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": 40, "hidden_size": 8,
    "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
    "num_local_experts": 2, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None,
    "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "tie_word_embeddings": False,
    "eos_token_id": [2, 3], "torch_dtype": "bfloat16", "hidden_act": "silu", "attention_dropout": 0.0,
    "layer_types": ["full_attention"],
}  # fmt: skip
PARAMS = {
    "dim": 8, "n_layers": 1, "head_dim": 4, "hidden_dim": 4, "n_heads": 2, "n_kv_heads": 1, "norm_eps": 1e-5,
    "vocab_size": 40, "rope_theta": 1e6, "moe": {"num_experts": 2, "num_experts_per_tok": 2}, "sliding_window": 8,
    "huggingface": {"bos_token_id": 1},
}  # fmt: skip


def gguf_file(path: Path) -> bytes:
    from coterie.checkpoint.gguf_metadata import config_to_metadata

    keys = config_to_metadata(CONFIG, "fuzz")
    tokens = [b"<unk>", b"<s>", b"</s>", b"\xe2\x96\x81", *(b"%c" % c for c in range(65, 101))]
    types = [2, 3, 3] + [1] * (len(tokens) - 3)
    keys |= {
        "tokenizer.ggml.model": ("string", "llama"),
        "tokenizer.ggml.tokens": ("array string", tokens),
        "tokenizer.ggml.scores": ("array f32", [0.0] * len(tokens)),
        "tokenizer.ggml.token_type": ("array i32", types),
        "tokenizer.ggml.bos_token_id": ("u32", 1),
    }
    shapes: dict[str, list[Any]] = {}
    for name, place in places(CONFIG, "gguf"):
        shapes.setdefault(name, []).append(place)
    tensors = [
        WrittenTensor(name, "F32", file_shape(name, filled), 4 * sum(p.n_elements for p in filled))
        for name, filled in shapes.items()
    ]
    write_gguf(path, keys, tensors, ([bytes(t.nbytes)] for t in tensors))
    return path.read_bytes()


def safetensors_file(path: Path) -> bytes:
    specs = [TensorSpec(name, "F32", shape) for name, shape in list(canonical_shapes(CONFIG))[1:]]
    write_file(path, specs, (bytes(spec.nbytes) for spec in specs))
    return path.read_bytes()


class Target:
    """One reader: sound bytes to start from, and what to do with others."""

    def __init__(self, folder: Path, name: str):
        self.name, self.path = name, folder / f"{name}.bin"
        self.is_json = name in ("config", "params", "index")
        self.sound = getattr(self, f"_make_{name}")(folder)

    def run(self, data: bytes) -> bool:
        """Whether `data` was accepted; anything but a declared error goes up."""
        try:
            getattr(self, f"_read_{self.name}")(data)
        except DECLARED as e:
            assert "\n" not in str(e) and len(str(e)) < 2000, f"not one sentence: {e}"
            return False
        return True

    def _make_gguf(self, folder: Path) -> bytes:
        self.path = folder / "x.gguf"
        return gguf_file(self.path)

    def _read_gguf(self, data: bytes) -> None:
        self.path.write_bytes(data)
        checkpoint = open_gguf(self.path)
        gguf_tokenizer(checkpoint.metadata, "x")

    def _make_safetensors(self, folder: Path) -> bytes:
        return safetensors_file(self.path)

    def _read_safetensors(self, data: bytes) -> None:
        self.path.write_bytes(data)
        read_entries(self.path)

    def _make_config(self, folder: Path) -> bytes:
        return json.dumps(HUGGINGFACE).encode()

    def _read_config(self, data: bytes) -> None:
        config_from_json(parse_object(data, "config.json", ConfigError), "config.json")

    def _make_params(self, folder: Path) -> bytes:
        return json.dumps(PARAMS).encode()

    def _read_params(self, data: bytes) -> None:
        config_from_params(parse_object(data, "params.json", ConfigError), "params.json")

    def _make_index(self, folder: Path) -> bytes:
        self.path = folder / "model.safetensors.index.json"
        names = {}
        for file, tensor in (("a.safetensors", "x"), ("b.safetensors", "y")):
            write_file(folder / file, [TensorSpec(tensor, "F32", (2,))], [bytes(8)])
            names[tensor] = file
        return json.dumps({"metadata": {"total_size": 16}, "weight_map": names}).encode()

    def _read_index(self, data: bytes) -> None:
        self.path.write_bytes(data)
        indexed_entries(self.path)


NASTY_NUMBERS = [
    0,
    1,
    2,
    7,
    31,
    63,
    64,
    127,
    128,
    255,
    256,
    65535,
    1 << 31,
    (1 << 32) - 1,
    1 << 62,
    1 << 63,
    (1 << 64) - 1,
]
NASTY_VALUES = [
    None, True, False, 0, -1, 1, 3, 1 << 31, 1 << 63, 10**30, 1.5, -0.0, 1e308, "", "x", "../x", "/etc/passwd", "\0",
    "a\nb", [], [1], [[]], {}, {"a": {}}, "\ud800", "default", "yarn", "F32", [0, 8], [8, 0], "mistral",
    "a.safetensors", [-1, 8],
]  # fmt: skip


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: bits, numbers, pieces cut, copied or swapped, the end cut off, all of it noise."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = (
            min(int(rng.expovariate(1 / 600)), max(0, len(out) - 1))
            if rng.random() < 0.8
            else rng.randrange(len(out) or 1)
        )
        kind = rng.randrange(8)
        if kind == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + 8] = struct.pack("<Q", rng.choice(NASTY_NUMBERS))
        elif kind == 2:
            out[at : at + 4] = struct.pack("<I", rng.choice(NASTY_NUMBERS) & 0xFFFFFFFF)
        elif kind == 3:
            del out[at : at + rng.choice((1, 4, 8, 32))]
        elif kind == 4:
            start, n = rng.randrange(len(out) or 1), rng.choice((1, 8, 40))
            out[at:at] = out[start : start + n]
        elif kind == 5:
            out[at : at + rng.choice((1, 16))] = rng.randbytes(rng.choice((1, 16)))
        elif kind == 6:
            del out[rng.randrange(len(out) or 1) :]
        elif rng.random() < 0.1:
            out = bytearray(data[: rng.choice((0, 4, 8, 24))] + rng.randbytes(rng.randrange(200)))
    return bytes(out)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """The same for the values, keys and text of a JSON document."""
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder = value
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.6:
                holder = holder[key]
                continue
            kind = rng.randrange(4)
            if kind == 0:
                del holder[key]
            elif kind == 1 and isinstance(holder, dict):
                holder[rng.choice(["", "x" * 300, "quantization_config", key + "s", "rope_scaling", "\0"])] = holder[
                    key
                ]
            else:
                holder[key] = copy.deepcopy(rng.choice(NASTY_VALUES))
            break
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        text = text.replace(b"{", rng.choice((b"{" * 400, b'{"a": NaN, ', b'{"a": 1, "a": 2, ', b"[", b"{\xff")), 1)
    return text


def mutate(target: Target, rng: random.Random) -> bytes:
    if target.is_json and rng.random() < 0.7:
        return mutate_json(target.sound, rng)
    if target.name == "safetensors" and rng.random() < 0.5:
        n = int.from_bytes(target.sound[:8], "little")
        head = mutate_json(target.sound[8 : 8 + n], rng)
        return len(head).to_bytes(8, "little") + head + target.sound[8 + n :]
    return mutate_bytes(target.sound, rng)


@pytest.mark.parametrize("name", ["gguf", "safetensors", "config", "params", "index"])
def test_no_file_is_worse_than_an_error(name: str, tmp_path: Path, is_full: bool) -> None:
    target = Target(tmp_path, name)
    assert target.run(target.sound)
    counts = {True: 0, False: 0}

    @settings(
        max_examples=(100_000 if is_full else 10_000) // A_BATCH,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, (1 << 64) - 1))
    def execute(seed: int) -> None:
        for i in range(A_BATCH):
            data = mutate(target, random.Random(f"{seed} {i}"))
            try:
                counts[target.run(data)] += 1
            except Exception as e:
                raise AssertionError(f"{name}, seed {seed}, number {i}: {type(e).__name__}: {e}; {data[:200]!r}") from e

    execute()
    assert sum(counts.values()) >= (100_000 if is_full else 10_000)
    assert counts[False] > 0.3 * sum(counts.values()) and counts[True] > 50, counts


def main(name: str, options: list[str]) -> None:
    """Coverage-guided, without end unless -runs=N says so."""
    import atheris  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as folder:
        target = Target(Path(folder), name)
        (Path(folder) / "corpus").mkdir()
        (Path(folder) / "corpus" / "sound").write_bytes(target.sound)
        atheris.instrument_all()
        run: Callable[[bytes], Any] = target.run
        atheris.Setup([sys.argv[0], *options, str(Path(folder) / "corpus")], run)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

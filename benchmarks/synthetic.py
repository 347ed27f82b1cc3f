"""A GGUF file of Mixtral's widths with random Q4_0 weights, for timing: routing is diverse, activations stay finite."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from coterie.checkpoint.gguf_write import Value, WrittenTensor, write_gguf
from coterie.config import ModelConfig

__all__ = ["write_synthetic"]

_PIECE = 1 << 21  # blocks made at a time


def write_synthetic(path: Path, config: ModelConfig) -> None:
    """4 layers of Mixtral 8x7B are 3.4 GB, 32 layers 26.3 GB."""
    c, rng = config, np.random.default_rng(0)
    D, F, E, kv = c.hidden_size, c.intermediate_size, c.num_local_experts or 0, c.num_key_value_heads * c.head_dim
    tensors = [_quantised("token_embd", (c.vocab_size, D)), _quantised("output", (c.vocab_size, D))]
    tensors.append(WrittenTensor("output_norm.weight", "F32", (D,), 4 * D))
    for i in range(c.num_hidden_layers):
        at = f"blk.{i}."
        tensors += [WrittenTensor(f"{at}{name}.weight", "F32", (D,), 4 * D) for name in ("attn_norm", "ffn_norm")]
        shapes = {"attn_q": (D, D), "attn_k": (kv, D), "attn_v": (kv, D), "attn_output": (D, D)}
        shapes |= {"ffn_gate_exps": (E, F, D), "ffn_up_exps": (E, F, D), "ffn_down_exps": (E, D, F)}
        tensors += [_quantised(at + name, shape) for name, shape in shapes.items()]
        tensors.append(WrittenTensor(f"{at}ffn_gate_inp.weight", "F32", (E, D), 4 * E * D))
    write_gguf(path, _keys(config), tensors, (_contents(t, rng) for t in tensors))


def _quantised(name: str, shape: tuple[int, ...]) -> WrittenTensor:
    return WrittenTensor(f"{name}.weight", "Q4_0", shape, int(np.prod(shape)) // 32 * 18)


def _contents(t: WrittenTensor, rng: np.random.Generator) -> Iterator[bytes]:
    if t.kind == "F32":
        yield (np.ones(t.shape, "<f4") if len(t.shape) == 1 else rng.standard_normal(t.shape, "f4") / 64).tobytes()
        return
    std = 1.0 if t.name.startswith("token_embd") else t.shape[-1] ** -0.5
    scale = int(np.float16(std / 4.6).view(np.uint16))  # the spread of -8..7 is 4.6
    for start in range(0, t.nbytes // 18, _PIECE):
        blocks = rng.integers(0, 256, (min(_PIECE, t.nbytes // 18 - start), 18), np.uint8)
        sign = blocks[:, 1] & 0x80  # random: with the nibbles' mean of -0.5 all tokens would else route alike
        blocks[:, 0], blocks[:, 1] = scale & 255, scale >> 8 | sign
        yield blocks.tobytes()


def _keys(c: ModelConfig) -> dict[str, Value]:
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % b for b in range(256))]
    pieces += [b"w%d" % i for i in range(c.vocab_size - len(pieces))]
    types = [2, 3, 3, *[6] * 256, *[1] * (c.vocab_size - 259)]
    keys: dict[str, Value] = {"general.architecture": ("string", "llama"), "general.name": ("string", "synthetic")}
    numbers = {
        "context_length": c.max_position_embeddings, "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers, "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads, "attention.head_count_kv": c.num_key_value_heads,
        "rope.dimension_count": c.head_dim, "vocab_size": c.vocab_size, "expert_count": c.num_local_experts,
        "expert_used_count": c.num_experts_per_tok,
    }  # fmt: skip
    keys |= {f"llama.{name}": ("u32", value) for name, value in numbers.items()}
    keys |= {"llama.attention.layer_norm_rms_epsilon": ("f32", 1e-5), "llama.rope.freq_base": ("f32", c.rope_theta)}
    keys |= {"tokenizer.ggml.model": ("string", "llama"), "tokenizer.ggml.tokens": ("array string", pieces)}
    keys |= {"tokenizer.ggml.scores": ("array f32", [-float(i) for i in range(c.vocab_size)])}
    keys |= {"tokenizer.ggml.token_type": ("array i32", types), "tokenizer.ggml.bos_token_id": ("u32", 1)}
    return keys | {"tokenizer.ggml.eos_token_id": ("u32", 2), "tokenizer.ggml.unknown_token_id": ("u32", 0)}

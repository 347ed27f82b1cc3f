"""What a card is given, checked on the CPU: packed models re-laid for it compute the same numbers, without kernels."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from coterie.checkpoint import card_load, card_memory
from coterie.checkpoint.card_memory import card_advice, card_need, require_card_memory, what_fits
from coterie.checkpoint.folder import open_checkpoint
from coterie.checkpoint.huggingface import save_huggingface
from coterie.checkpoint.load import load_model
from coterie.config import ModelConfig
from coterie.engine.fingerprint import fingerprint
from coterie.errors import RequestError, ResourceError
from coterie.kernels.packed import Packed
from coterie.model import Transformer
from coterie.model.attention import WholeSequences
from coterie.quant.card_layers import CardEmbedding, CardExperts, CardLinear
from coterie.quant.report import bits_of

CPU = torch.device("cpu")
MIXTRAL = ModelConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=32768,
)  # fmt: skip


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_load, "_activations", lambda name, device: torch.float32)


def logits(model: Transformer) -> Tensor:
    ids = torch.arange(20)
    with torch.inference_mode():
        out: Tensor = model.head(model(ids, ids, WholeSequences(1, None)).hidden_TD)
    return out


def near(got: Tensor, expected: Tensor, most: float = 1e-4) -> bool:
    return float((got - expected).norm() / expected.norm()) < most


def test_a_packed_folder(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COTERIE_KERNELS", "reference")
    model = card_load.load_packed_on_card(open_checkpoint(packed), CPU)
    assert any(isinstance(m, CardExperts) for m in model.modules())
    plain = load_model(packed, dtype="float32", device="cpu")
    assert near(logits(model), logits(plain))
    assert {b.part: b.n_weights for b in bits_of(model)} == {b.part: b.n_weights for b in bits_of(plain)}
    assert fingerprint(model) != fingerprint(plain) and model.cache_dtype == torch.float32


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K"])
def test_a_quantised_gguf_file(make_tiny: Callable, kind: str) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 64}
    path, _ = make_tiny(**sizes).gguf(kind=kind)
    checkpoint, seen = open_checkpoint(path), []
    assert card_load.stays_packed(checkpoint, "auto") and not card_load.stays_packed(checkpoint, "float32")
    model = card_load.load_packed_on_card(checkpoint, CPU, lambda done, total: seen.append((done, total)))
    assert near(logits(model), logits(load_model(path, dtype="float32", device="cpu")))
    assert seen[-1][0] == seen[-1][1] == checkpoint.nbytes


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"num_local_experts": None}])
@pytest.mark.parametrize("kind", ["int4", "int8", "fp8"])
def test_weights_quantised_as_they_are_read(
    make_model: Callable[..., Transformer], tmp_path: Path, kind: str, changes: dict
) -> None:
    plain = make_model(hidden_size=64, intermediate_size=96, **changes)
    save_huggingface(tmp_path / "m", plain.config, plain.tensors(), dtype="float32")
    model = card_load.load_quantised_on_card(open_checkpoint(tmp_path / "m"), kind, "auto", CPU)
    if kind == "fp8":
        assert near(logits(model), logits(plain), 0.2)
        formats = {b.part: b.format for b in bits_of(model)}
        assert formats["experts"] == formats["attention"] == "fp8, a scale a row"
        assert formats["embedding"] == formats["norms"] == "float32"
    else:
        packed = load_model(tmp_path / "m", quantize=kind, device="cpu", dtype="float32")
        assert near(logits(model), logits(packed), 0.02)  # the CPU's activations are of 8 bits
    assert any(isinstance(m, CardEmbedding) for m in model.modules())
    linear = next(m for m in model.modules() if isinstance(m, CardLinear))
    assert len(linear.parts) == 1 and isinstance(linear.parts[0], Packed)  # q, k and v are one product


def test_fp8_is_for_a_card(packed: Path) -> None:
    with pytest.raises(RequestError, match="fp8 is computed with on a CUDA GPU"):
        load_model(packed, quantize="fp8", device="cpu")


def test_a_card_without_float8(
    make_model: Callable[..., Transformer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels of fp8 cannot be compiled for an A100: the model was loaded, and then each request failed."""
    monkeypatch.setattr(card_load, "has_fp8", lambda device: False)
    plain = make_model()
    save_huggingface(tmp_path / "m", plain.config, plain.tensors(), dtype="float32")
    with pytest.raises(RequestError, match=r"fp8 needs a card of compute capability 8\.9 .* use int8"):
        card_load.load_quantised_on_card(open_checkpoint(tmp_path / "m"), "fp8", "auto", CPU)
    assert "fp8" in card_advice(MIXTRAL, 80 * 10**9, 94 * 10**9)
    assert "fp8" not in card_advice(MIXTRAL, 80 * 10**9, 94 * 10**9, fp8=False)


def test_mixtral_on_cards() -> None:
    gb = 10**9
    assert card_need(MIXTRAL, "int8") == pytest.approx(49.6 * gb, rel=0.01)
    assert card_need(MIXTRAL, "fp8") == pytest.approx(46.9 * gb, rel=0.01)
    assert card_need(MIXTRAL, "int4") == pytest.approx(27.8 * gb, rel=0.01)
    on_80 = {type: tokens for type, _, tokens in what_fits(MIXTRAL, 80 * gb)}
    assert list(on_80) == ["fp8", "int8", "int6", "int5", "int4", "int3", "int2"]
    assert on_80["int8"] == (80 * gb - (2 << 30) - card_need(MIXTRAL, "int8")) // 131072
    assert [type for type, *_ in what_fits(MIXTRAL, 26 * gb)] == ["int3", "int2"]
    assert "no number of bits makes it fit" in card_advice(MIXTRAL, 8 * gb, 94 * gb)


def test_what_does_not_fit_is_said_with_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_memory, "available_memory", lambda device: 80 * 10**9)
    monkeypatch.setattr(card_memory, "has_fp8", lambda device: True)
    with pytest.raises(
        ResourceError, match=r"as bfloat16.*cuda:0 has 80.0 GB free.*int8 \(.*contexts of 32,768 tokens"
    ):
        require_card_memory(Path("m"), MIXTRAL, 94 * 10**9, "bfloat16", torch.device("cuda:0"))
    require_card_memory(Path("m"), MIXTRAL, 50 * 10**9, "int8", torch.device("cuda:0"))

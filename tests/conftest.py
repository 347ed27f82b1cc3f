"""What all tests share: small models and tokenizers, where the text is, long or short counts, a calm machine."""

import importlib.util
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before torch: with tiny tensors more threads only wait for each other
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from coterie.config import ModelConfig
from coterie.model import Transformer

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started with `&`: what tests start would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)

IS_FULL = os.environ.get("COTERIE_FULL") == "1"

settings.register_profile("short", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("full", parent=settings.get_profile("short"), max_examples=1000)
settings.load_profile("full" if IS_FULL else "short")

TEXT = (
    "Il était une fois un roi qui avait trois filles. The king had three daughters, and a café by the sea. "
    "Es war einmal ein König, der hatte drei Töchter. C'era una volta un re. Había una vez un rey. "
    "def king(n):\n    return [n, n + 1]\n"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not IS_FULL:
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker(pytest.mark.skip(reason="long; `make test-full` runs it"))


@pytest.fixture(scope="session")
def is_full() -> bool:
    """Whether long counts are asked for (`make test-full`)."""
    return IS_FULL


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of training and evaluation text; without COTERIE_DATA the test is skipped."""
    value = os.environ.get("COTERIE_DATA")
    if not value or not Path(value, "text").is_dir():
        pytest.skip("COTERIE_DATA names no folder with text/")
    return Path(value)


@pytest.fixture(scope="session")
def mistral_files() -> dict[str, Path]:
    """The tokenizer files that the mistral-common package brings, by version."""
    data = Path(pytest.importorskip("mistral_common").__file__).parent / "data"
    return {
        "v1": data / "tokenizer.model.v1",
        "v2": data / "mistral_instruct_tokenizer_240216.model.v2",
        "v3": data / "mistral_instruct_tokenizer_240323.model.v3",
        "v7": data / "mistral_instruct_tokenizer_241114.model.v7",
        "tekken": data / "tekken_240718.json",
    }


class ByteTokenizer:
    """A fake: id 3 + b for each byte b of UTF-8; 0 unknown, 1 BOS, 2 EOS. Whatever the context, a byte is a byte."""

    kind, vocab_size, bos_id, eos_id = "bytes", 259, 1, 2

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        return [1] * bos + [3 + b for b in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i - 3 for i in ids if 3 <= i < 259).decode("utf-8", errors="replace")

    def piece(self, token_id: int) -> str:
        return f"<0x{token_id - 3:02X}>" if token_id >= 3 else ("<unk>", "<s>", "</s>")[token_id]

    def control_id(self, text: str) -> int | None:
        return {"<s>": 1, "</s>": 2}.get(text)


@pytest.fixture(scope="session")
def byte_tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


def random_model(seed: int = 0, **fields: object) -> Transformer:
    """A random float32 model of the ByteTokenizer's size; large weights, so that attention and routing matter."""
    shape = dict(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=256,
        torch_dtype="float32",
    )
    model = Transformer(ModelConfig(**{**shape, **fields}), torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=1.0 if p.ndim == 1 else 0.0, std=0.15, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Transformer]:
    return random_model


@pytest.fixture(scope="session")
def dense_config() -> ModelConfig:
    """A tiny dense model, to make sparse ones of."""
    return ModelConfig(
        vocab_size=40, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=None, max_position_embeddings=64, rope_theta=1e4, sliding_window=6,
    )  # fmt: skip


@pytest.fixture(scope="session")
def dense_tensors(dense_config: ModelConfig) -> Callable[..., dict[str, torch.Tensor]]:
    """Its random tensors by canonical name, or those of another configuration or seed."""

    def tensors(config: ModelConfig = dense_config, seed: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = Transformer(config, torch.float32).tensors()
        return {name: torch.randn(t.shape, generator=generator) * 0.3 for name, t in shapes.items()}

    return tensors


@pytest.fixture(scope="session")
def sentencepiece_bytes() -> bytes:
    """A SentencePiece model with Mixtral's settings and 340 pieces."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 3),
        model_writer=out,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        max_sentencepiece_length=16,
        minloglevel=3,
    )
    return out.getvalue()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, sentencepiece_bytes: bytes) -> Path:
    """A Hugging Face folder: a random sparse model in float32, a SentencePiece tokenizer. Copy it to change it."""
    from coterie.checkpoint.huggingface import save_huggingface

    folder = tmp_path_factory.mktemp("tiny") / "model"
    model = random_model(vocab_size=340)
    save_huggingface(folder, model.config, model.tensors(), dtype="float32")
    (folder / "tokenizer.model").write_bytes(sentencepiece_bytes)
    return folder


@pytest.fixture(scope="session")
def judges() -> ModuleType:
    """tests/eval/fake_judge.py: a judge behind HTTP on this machine."""
    path = Path(__file__).parent / "eval" / "fake_judge.py"
    spec = importlib.util.spec_from_file_location("fake_judge", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["fake_judge"] = importlib.util.module_from_spec(spec)  # dataclasses look it up
    spec.loader.exec_module(module)
    return module

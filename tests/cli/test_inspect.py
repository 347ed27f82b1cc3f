"""`inspect` on bare configurations, folders and tensors; the figures themselves are `tests/test_sizes.py`'s."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.checkpoint.hub import DEMO
from coterie.checkpoint.huggingface import save_huggingface
from coterie.cli.main import main
from coterie.config import ModelConfig
from coterie.model import Transformer

MIXTRAL_PARAMS = {
    **{"dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8},
    **{"norm_eps": 1e-05, "vocab_size": 32000, "moe": {"num_experts_per_tok": 2, "num_experts": 8}},
}
MIXTRAL_CONFIG = {
    **{"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 4096, "hidden_act": "silu"},
    **{"intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
    **{"num_local_experts": 8, "num_experts_per_tok": 2, "rms_norm_eps": 1e-05, "rope_theta": 1e6, "vocab_size": 32000},
    **{"sliding_window": None, "max_position_embeddings": 32768, "tie_word_embeddings": False},
    **{"bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16", "router_aux_loss_coef": 0.02},
}


def write(path: Path, values: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return path


def inspect(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main(["inspect", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    config = ModelConfig(
        vocab_size=48, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, num_local_experts=4, max_position_embeddings=64, torch_dtype="float32",
    )  # fmt: skip
    tensors = {name: torch.full_like(t, 0.5) for name, t in Transformer(config, torch.float32).tensors().items()}
    save_huggingface(tmp_path / "tiny", config, tensors, dtype="float32")
    return tmp_path / "tiny"


@pytest.mark.parametrize(("name", "values"), [("config.json", MIXTRAL_CONFIG), ("params.json", MIXTRAL_PARAMS)])
@pytest.mark.parametrize("as_folder", [False, True])
def test_mixtral_from_its_configuration_alone(
    name: str, values: dict[str, Any], as_folder: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / name, values)
    code, out, err = inspect(capsys, tmp_path if as_folder else path)
    assert code == 0 and err == ""
    for figure in (
        "46,702,792,704",
        "12,879,925,248",
        "28^32",
        "3.5 of each expert",
        "93.4 GB",
        "46.7 GB",
        "23.4 GB",
        "131 MB",
    ):
        assert figure in out, figure
    code, out, _ = inspect(capsys, path, "--json")
    document = json.loads(out)
    assert code == 0 and document["parameters"]["total"] == 46_702_792_704
    assert document["parameters"]["active"] == 12_879_925_248
    assert document["experts"]["paths"] == "28^32" and document["query_heads_per_key_head"] == 4
    assert document["bytes"] == {"16": 93_405_585_408, "8": 46_702_792_704, "4": 23_351_396_352}
    assert document["cache"]["bytes_per_1k_tokens"] == 131_072_000 and document["cache"]["window"] is None
    assert {f["bits"] for f in document["fits"][0]["weights"]} == {16, 8, 4}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "topk"),
        ({"norm_topk_prob": False}, "topk_all"),
        ({"model_type": "coterie", "router": {"kind": "sigmoid_bias"}}, "sigmoid_bias"),
        (
            {"model_type": "coterie", "router": {"kind": "expert_choice"}},
            "expert_choice, which looks at later tokens: no text can be generated",
        ),
    ],
)
def test_the_router(changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path / "config.json", MIXTRAL_CONFIG | {"architectures": None} | changes)
    _, out, _ = inspect(capsys, config)
    assert said in [
        line.strip().split("  ")[-1].strip() for line in out.splitlines() if line.strip().startswith("router ")
    ]
    _, out, _ = inspect(capsys, config, "--json")
    assert json.loads(out)["experts"]["router"] == said.split(",")[0]


def test_a_window_bounds_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "config.json", {**MIXTRAL_CONFIG, "sliding_window": 512})
    cache = json.loads(inspect(capsys, path, "--json")[1])["cache"]
    assert cache["bytes_per_1k_tokens"] == 131_072_000 and cache["bytes_per_1k_tokens_with_window"] == 131_072 * 512
    assert "with the window" in inspect(capsys, path)[1]


def test_a_dense_model_has_no_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = {k: v for k, v in MIXTRAL_CONFIG.items() if "expert" not in k and "router" not in k}
    path = write(tmp_path / "config.json", {**dense, "model_type": "mistral", "architectures": ["MistralForCausalLM"]})
    assert json.loads(inspect(capsys, path, "--json")[1])["experts"] is None
    out = inspect(capsys, path)[1]
    assert "a dense model" in out and "router" not in out and "expert" not in out


def test_tensors_are_listed_with_shape_and_dtype(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = inspect(capsys, tiny, "--tensors")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0 and len(lines) == 3 + 2 * (6 + 1 + 4 * 3)
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight [16, 20] F32" in lines
    document = json.loads(inspect(capsys, tiny, "--tensors", "--json")[1])
    first = document["tensors"][0]
    assert set(first) == {"name", "dtype", "shape", "file", "bytes"} and len(document["tensors"]) == len(lines)
    assert sum(t["bytes"] for t in document["tensors"]) == document["file_bytes"] == 4 * document["parameters"]["total"]
    assert inspect(capsys, tiny / "model.safetensors", "--tensors")[1].splitlines() == out.splitlines()


def test_no_torch_is_imported(tiny: Path) -> None:
    import subprocess

    code = (
        f"import sys; from coterie.cli.main import main; code = main(['inspect', {str(tiny)!r}]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_our_card_is_printed_and_a_strangers_is_not(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny / "README.md").write_text("---\nlicense: mit\n---\n# A stranger's\n")
    assert "stranger" not in inspect(capsys, tiny)[1]
    (tiny / "README.md").write_text("---\nlibrary_name: coterie\n---\n# Ours\n\x1b[2Jé\n")
    out = inspect(capsys, tiny)[1]
    assert "# Ours" in out and "\x1b" not in out and "é" in out and "library_name" not in out
    assert json.loads(inspect(capsys, tiny, "--json")[1])["card"].startswith("# Ours")


@pytest.mark.skipif(not (DEMO / "README.md").is_file(), reason="the model that ships is not there yet")
def test_the_model_that_ships_has_its_card(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inspect(capsys, "demo")
    assert code == 0, err
    assert (DEMO / "README.md").read_text(encoding="utf-8").strip().splitlines()[-1] in out


def test_what_cannot_be_inspected_is_one_sentence(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {
        "absent": "no such folder",
        tmp_path: "neither config.json nor params.json",
        write(tmp_path / "a" / "config.json", {**MIXTRAL_CONFIG, "num_local_experts": "8"}): "num_local_experts",
        write(tmp_path / "b" / "config.json", {**MIXTRAL_CONFIG, "num_local_experts": 0}): "num_local_experts",
        write(tmp_path / "c" / "config.json", {**MIXTRAL_CONFIG, "num_experts_per_tok": 9}): "num_experts_per_tok",
        write(tmp_path / "d" / "config.json", {**MIXTRAL_CONFIG, "num_key_value_heads": 5}): "num_key_value_heads",
        write(tmp_path / "e" / "e.gguf", {}): "no GGUF file",
        tmp_path / "e": "GGUF files; name one of them (e.gguf)",
        tiny / "model.safetensors": "not a folder; expected a model's folder",
    }
    for path, words in bad.items():
        code, out, err = inspect(capsys, path)
        assert code == 2 and out == "" and words in err and err.count("\n") == 1, err
    code, _, err = inspect(capsys, tmp_path / "config.json", "--tensors")
    assert code == 2
    data = (tiny / "model.safetensors").read_bytes()
    (tiny / "model.safetensors").write_bytes(data[:-4])
    code, _, err = inspect(capsys, tiny)
    assert code == 2 and "model.safetensors" in err

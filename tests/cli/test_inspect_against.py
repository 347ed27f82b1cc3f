"""`inspect MOE --against DENSE` on folders that an upcycling made."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from coterie.checkpoint.huggingface import save_huggingface
from coterie.cli.main import main
from coterie.model import Transformer
from coterie.train.upcycle import Upcycling, sparse_config, upcycle


@pytest.fixture
def pair(make_model: Callable[..., Transformer], tmp_path: Path) -> tuple[Path, Path]:
    """A dense folder, and a sparse one with half of each expert's channels drawn anew."""
    dense = make_model(num_local_experts=None)
    plan = Upcycling(method="drop", drop=0.5)
    config = sparse_config(dense.config, {"num_local_experts": 4}, plan, where="test")
    read = upcycle(dense.tensors().__getitem__, config, plan)
    tensors = {name: read(name) for name in Transformer(config, dense.dtype).tensors()}
    save_huggingface(tmp_path / "moe", config, tensors, dtype="float32")
    save_huggingface(tmp_path / "dense", dense.config, dense.tensors(), dtype="float32")
    return tmp_path / "moe", tmp_path / "dense"


def test_table_and_sentence(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(pair[0]), "--against", str(pair[1])]) == 0
    out = capsys.readouterr().out
    head, *rows = [line.split("  ") for line in out.splitlines()[2:6]]
    assert head[0] == "layer" and len(rows) == 3
    assert "The experts come from the dense block and have moved away from it (mean cosine 0.5" in out


def test_json(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(pair[0]), "--against", str(pair[1]), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["against"] == str(pair[1]) and len(document["layers"]) == 3
    layer = document["layers"][1]
    assert set(layer) == {"layer", "with_dense", "shuffled", "each_other", "matches"}
    assert all(0.4 < v < 0.6 for part in layer["with_dense"].values() for v in part)
    assert all(0.4 < m["in_place"] < 0.7 for m in layer["matches"])


def test_two_models_that_cannot_be_compared(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(pair[1]), "--against", str(pair[0])]) == 2
    assert "is dense, expected a mixture of experts" in capsys.readouterr().err
    assert main(["inspect", str(pair[0]), "--against", str(pair[1]), "--tensors"]) == 2
    assert "leave one of them out" in capsys.readouterr().err

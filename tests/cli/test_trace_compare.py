"""`coterie trace compare` on real trace files of planted routing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.analysis.trace import make_trace
from coterie.cli.main import main

Planted = Callable[..., Path]


@pytest.fixture
def plant(tmp_path: Path) -> Planted:
    """A file NAME.trace: `kept` of 2,000 tokens are routed as the seed 0 has it, the others as `seed`."""

    def make(name: str, *, kept: float = 1.0, seed: int = 1, T: int = 2000, E: int = 8, first_token: int = 5) -> Path:
        experts, other = (
            np.argsort(np.random.default_rng(s).random((T, 2, E)), axis=-1)[..., :2].astype(np.int16)
            for s in (0, seed)
        )  # fmt: skip
        is_kept = np.random.default_rng(99).random(T) < kept
        experts[~is_kept] = other[~is_kept]
        tokens = np.arange(T, dtype=np.int32) % 50
        tokens[0] = first_token
        path = tmp_path / f"{name}.trace"
        make_trace(
            path, experts_TLK=experts, weights_TLK=np.full(experts.shape, 0.5, dtype=np.float32), token_ids=tokens,
            documents=np.arange(T) // 100, domains=["a" if t // 100 % 2 else "b" for t in range(T)], n_experts=E,
        )  # fmt: skip
        return path

    return make


def run(*arguments: Any) -> int:
    return main(["trace", "compare", *map(str, arguments)])


def test_two_traces_are_a_table_and_a_sentence(plant: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(plant("before", kept=0.6), plant("after")) == 0
    out = capsys.readouterr().out
    assert "From before to after" in out and "sets in common %" in out and "How settled" not in out


def test_json_of_three_has_saturation(plant: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(plant("s1", kept=0), plant("s2", kept=0.5), plant("s3"), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [t["name"] for t in document["traces"]] == ["s1", "s2", "s3"]
    sections = {s["key"]: s for s in document["sections"]}
    assert list(sections) == ["drift", "drift-domains", "saturation"]
    by_layer = np.array(sections["saturation"]["facts"]["by_layer"])
    assert by_layer == pytest.approx(np.array([[0.25, 0.25], [0.625, 0.625]]), abs=0.05)


@pytest.mark.parametrize(
    ("other", "said"),
    [({"T": 1900}, "1,900"), ({"E": 9}, "experts a layer"), ({"first_token": 7}, "token 0 is 5 in one and 7")],
)
def test_traces_of_another_text_or_shape(
    plant: Planted, capsys: pytest.CaptureFixture[str], other: dict[str, Any], said: str
) -> None:
    assert run(plant("a"), plant("b", **other)) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_mistakes_of_the_command(plant: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = plant("a")
    for arguments, said in (
        ((a,), "two traces"),
        ((a, tmp_path / "none.trace"), "none.trace"),
        ((a, a, "--plot", tmp_path / "x.pdf"), "ends with .svg or .png"),
        ((a, a, "--plot", tmp_path / "none" / "x.svg"), "no folder"),
    ):
        assert run(*arguments) == 2
        assert said in capsys.readouterr().err


def test_plots_are_files(plant: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert run(plant("a", kept=0.2), plant("b"), "--plot", tmp_path / "drift.svg") == 0
    assert (tmp_path / "drift.svg").read_text().startswith("<?xml") and (tmp_path / "drift-2.svg").exists()
    assert "drift-2.svg" in capsys.readouterr().err


def test_files_of_one_name_are_told_apart(plant: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = plant("a")
    assert run(a, a) == 0
    out = capsys.readouterr().out
    assert "Every token meets the same experts" in out and "a (1)" in out and "a (2)" in out

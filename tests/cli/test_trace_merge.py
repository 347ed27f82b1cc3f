import json
from pathlib import Path

import numpy as np
import pytest

from coterie.analysis.trace import make_trace, open_trace
from coterie.cli.main import main


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [
        make_trace(
            tmp_path / name, experts_TLK=np.zeros((n, 1, 1)), weights_TLK=np.ones((n, 1, 1)), token_ids=[0] * n,
            n_experts=2, domains=[name] * n,
        )
        for name, n in (("a", 2), ("b", 3))
    ]  # fmt: skip


def test_two_become_one(capsys: pytest.CaptureFixture[str], two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "c"
    assert main(["trace", "merge", *map(str, two), "-o", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["tokens"] == len(open_trace(out)) == 5 and document["domains"] == ["a", "b"]
    assert main(["trace", "merge", *map(str, two), "-o", str(out)]) == 0
    assert "5 tokens of 2 texts" in capsys.readouterr().err


def test_mistakes(capsys: pytest.CaptureFixture[str], two: list[Path], tmp_path: Path) -> None:
    (tmp_path / "mine.md").write_text("precious")
    for args, says in (
        ([str(two[0]), str(tmp_path / "none"), "-o", str(tmp_path / "c")], "does not exist"),
        ([str(two[0]), "-o", str(tmp_path / "mine.md")], "is no trace"),
        ([str(tmp_path / "mine.md"), "-o", str(tmp_path / "c")], "no routing trace"),
    ):
        assert main(["trace", "merge", *args]) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1
    assert (tmp_path / "mine.md").read_text() == "precious" and not (tmp_path / "c").exists()

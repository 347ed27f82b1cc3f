"""`coterie trace report` on real trace files of planted routing."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.analysis.trace import make_trace
from coterie.cli.main import main
from coterie.cli.trace_report import find
from coterie.errors import DataError

PIECES = ["▁de", "▁la", "\n", "<0xC3>", "<0xA9>", "12", "def", "<b>", "\x00", "x"]


def planted(path: Path, T: int = 1500, E: int = 4, **more: Any) -> Path:
    rng = np.random.default_rng(0)
    experts = np.argsort(rng.random((T, 2, E)), axis=-1)[..., :2]
    return make_trace(
        path, experts_TLK=experts, weights_TLK=np.full(experts.shape, 0.5), token_ids=np.arange(T) % len(PIECES),
        n_experts=E, documents=np.arange(T) // 100, domains=["a <i>" if t // 100 % 2 else "b" for t in range(T)],
        pieces=PIECES, model="planted", **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("trace") / "run.trace")


def run(*arguments: Any) -> int:
    return main(["trace", "report", *map(str, arguments)])


def test_findings_as_sentences(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(trace) == 0
    out = capsys.readouterr().out
    assert "How many experts must stay in memory\n  With 4 of 8 experts in memory, LRU" in out
    assert "Consecutive tokens with the same expert" in out and "Do domains differ?" in out


def test_json_is_one_document(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(trace, "--json", "--sample", "1024") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["model"], document["tokens"], document["layers"], document["experts"]) == ("planted", 1500, 2, 4)
    sections = {section["key"]: section for section in document["sections"]}
    assert {"shares", "repeats", "caching", "reuse", "working-set", "prefetch"} <= set(sections)
    assert sections["caching"]["facts"]["by_layer"]["tokens"] == 1024


def test_a_folder_with_a_page_and_its_pictures(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "deep" / "report"
    assert run(trace, "-o", folder, "--json") == 0
    captured = capsys.readouterr()
    document = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert document == json.loads(captured.out) and str(folder / "index.html") in captured.err
    names = {name for section in document["sections"] for name in section["plots"]}
    files = {p.name for p in folder.iterdir()}
    assert files == {"index.html", "report.json"} | {f"{name}.{end}" for name in names for end in ("svg", "png")}
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 2_000_000 and page.count("<svg") == len(names)
    assert "a &lt;i&gt;" in page and "<i>" not in page and "\x00" not in page and "é" in page
    assert 'src="http' not in page and 'href="http' not in page and "<script" not in page


def test_an_older_report_is_replaced_and_nothing_else(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("coterie.analysis.report.draw", lambda sections, progress: {})
    folder = tmp_path / "report"
    assert run(trace, "-o", folder) == 0
    (folder / "old.svg").write_text("of an older version")
    assert run(trace, "-o", folder) == 0 and not (folder / "old.svg").exists()
    (folder / "mine.txt").write_text("notes")
    assert run(trace, "-o", folder) == 2 and "exists already" in capsys.readouterr().err
    assert (folder / "mine.txt").read_text() == "notes" and list(tmp_path.iterdir()) == [folder]


def test_without_matplotlib_one_sentence_says_how_to_have_it(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(trace, "-o", tmp_path / "report") == 2
    assert "pip install matplotlib" in capsys.readouterr().err and not (tmp_path / "report").exists()
    assert run(trace) == 0, "sentences need no pictures"


def test_what_cannot_be_reported(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "cut.trace"
    cut.write_bytes(trace.read_bytes()[:-100])
    (tmp_path / "text.trace").write_text("no trace at all, but long enough to be taken for one" * 10)
    for path in (cut, tmp_path / "text.trace", tmp_path / "none.trace"):
        assert run(path) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert run(trace, "--sample", "0") == 2
    with pytest.raises(DataError, match="no tokens"):
        find([], 10)  # type: ignore[arg-type]


@pytest.mark.parametrize("T", [1, 2, 33])
def test_short_traces_have_findings(T: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(planted(tmp_path / "short.trace", T=T)) == 0
    assert " nan" not in capsys.readouterr().out


def test_a_single_token_has_a_page(tmp_path: Path) -> None:
    """Nothing to draw must not be a fault."""
    pytest.importorskip("matplotlib")
    assert run(planted(tmp_path / "short.trace", T=1), "-o", tmp_path / "report") == 0


def test_ctrl_c_leaves_nothing(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    from coterie.analysis import report

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "png", interrupted)
    assert run(trace, "-o", tmp_path / "report") == 130
    assert list(tmp_path.iterdir()) == []

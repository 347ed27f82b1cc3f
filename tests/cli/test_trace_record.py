import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.analysis.trace import open_trace
from coterie.api import load
from coterie.cli.main import main
from coterie.engine import record as engine_record


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main(["trace", "record", *map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    """fr.valid.txt, and rows with labels and without."""
    plain = tmp_path / "fr.valid.txt"
    plain.write_text("Il était une fois un roi.\n", encoding="utf-8")
    rows = [{"text": "The king.", "lang": "en"}, {"text": "Ein König.", "subject": "de"}, {"text": "king()"}]
    packed = tmp_path / "mixed.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return [plain, packed]


def test_it_holds_what_route_says(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, texts: list[Path], tmp_path: Path
) -> None:
    code, out, err = run(capsys, tiny_folder, *texts, "-o", tmp_path / "a.trace")
    assert code == 0 and "coterie trace report" in err and [line.split()[0] for line in out.splitlines()] == [
        "domain", "fr", "en", "de", "mixed", "all"
    ]  # fmt: skip
    trace = open_trace(tmp_path / "a.trace")
    assert trace.domains == ["fr", "en", "de", "mixed"] and trace.n_documents == 4
    lm = load(tiny_folder)
    routed = lm.route("Il était une fois un roi.\n")
    n = len(routed.token_ids)
    assert trace.token_ids[:n].tolist() == list(routed.token_ids)
    assert (trace.experts(0, n) == routed.experts.numpy()).all()
    assert np.allclose(trace.weights(0, n), routed.weights.numpy(), atol=1 / 509)
    assert trace.pieces == [lm.tokenizer.piece(i) for i in range(340)]


def test_windows_and_the_most_of_a_file(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, texts: list[Path], tmp_path: Path
) -> None:
    text = tmp_path / "long.txt"
    text.write_text("Es war einmal ein König. " * 40, encoding="utf-8")
    out = tmp_path / "a.trace"
    options = ("--window", 8, "--tokens", 50, "--domain", "all", "--guess", "--logits", "--json")
    code, shown, err = run(capsys, tiny_folder, text, texts[0], "-o", out, *options)
    document = json.loads(shown)
    trace = open_trace(out)
    assert code == 0 and err == "" and document["bytes"] == out.stat().st_size
    assert document["tokens"] == len(trace) and document["domains"] == {"all": len(trace)}
    assert (trace.documents == 0).sum() == 50 and trace.positions[:50].tolist() == [*range(8)] * 6 + [0, 1]
    assert set(trace.token_ids[trace.positions == 0].tolist()) == {1}
    assert trace.logits() is not None and trace.guesses() is not None
    assert document["guesses"] and document["logits"] and document["fingerprint"] == trace.fingerprint


def test_a_folder_is_its_files(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, texts: list[Path], tmp_path: Path
) -> None:
    assert run(capsys, tiny_folder, tmp_path, "-o", tmp_path / "a.trace")[0] == 0
    assert open_trace(tmp_path / "a.trace").n_documents == 4


def test_mistakes_are_one_sentence_and_leave_nothing(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, texts: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"no": 1}\n')
    (tmp_path / "mine.md").write_text("precious")
    out = tmp_path / "a.trace"
    before = sorted(tmp_path.iterdir())
    for args, says in (
        ((tmp_path / "none.txt", "-o", out), "not a file or a folder"),
        ((tmp_path / "empty.txt", "-o", out), "there is no text"),
        ((tmp_path / "bad.jsonl", "-o", out), "line 2"),
        ((texts[0], "-o", tmp_path / "mine.md"), "exists and is no trace"),
        ((texts[0], "-o", tmp_path), "is a folder"),
        ((texts[0], "-o", tmp_path / "no" / "a"), "no folder"),
        ((texts[0], "-o", out, "--window", "1000"), "the context"),
        ((texts[0], "-o", out, "--window", "1"), "range"),
    ):
        code, _, err = run(capsys, tiny_folder, *args)
        assert code == 2 and says in err and err.count("\n") == 1, err
    assert sorted(tmp_path.iterdir()) == before


def test_a_dense_model_is_refused_before_it_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, texts: list[Path], dense_config: Any, dense_tensors: Any
) -> None:
    from coterie.checkpoint.huggingface import save_huggingface

    save_huggingface(tmp_path / "dense", dense_config, dense_tensors(), dtype="float32")
    code, _, err = run(capsys, tmp_path / "dense", texts[0], "-o", tmp_path / "a.trace")
    assert code == 2 and "dense model" in err


def test_ctrl_c_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, texts: list[Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def interrupted(*args: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine_record, "read_windows", interrupted)
    before = sorted(tmp_path.iterdir())
    code, _, err = run(capsys, tiny_folder, texts[0], "-o", tmp_path / "a.trace")
    assert code == 130 and "interrupted" in err and sorted(tmp_path.iterdir()) == before


def test_an_older_trace_is_replaced(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, texts: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "a.trace"
    assert run(capsys, tiny_folder, *texts, "-o", out)[0] == 0
    assert run(capsys, tiny_folder, texts[0], "-o", out)[0] == 0
    assert open_trace(out).domains == ["fr"]

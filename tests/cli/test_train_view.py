import io
import re
from typing import Any

import pytest

from coterie.cli import train_view
from coterie.cli.train_view import TrainView, human_time, status


def record(step: int, **more: Any) -> dict[str, Any]:
    fields = {
        "step": step, "loss": 2.0, "balance": 1.1, "bits_per_byte": 0.721, "tokens_per_s": 1000.0,
        "operations_per_s": 5e9, "peak_share": 0.25, "max_vio": 0.5, "entropy": 0.9, "idle": 3,
        "seconds": 2.0 * (step + 1),
    }  # fmt: skip
    return fields | more


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_has_everything() -> None:
    line = "  ".join(text for _, text in status([record(9)], record(0), 40))
    assert line == (
        "step 10/40  loss 2.000  0.721 bits/byte  1,000 tok/s  5.00 GFLOP/s  25% of peak  MaxVio 0.50  "
        "entropy 0.900  3 idle  60 s left"
    )


def test_a_dense_model_has_no_load() -> None:
    dense = {key: value for key, value in record(9).items() if key != "balance"}
    assert "MaxVio" not in "  ".join(text for _, text in status([dense], record(0), 40))


def test_means_over_the_last_steps() -> None:
    parts = dict(status([record(0), record(1, loss=4.0, tokens_per_s=3000.0)], record(0), 40))
    assert parts[1] == "loss 3.000" and parts[4] == "1,500 tok/s"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (42, "42 s"), (300, "5 min"), (12065, "3 h 21 min")])
def test_time_for_people(seconds: float, text: str) -> None:
    assert human_time(seconds) == text


def test_elsewhere_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(train_view.time, "monotonic", lambda: float(next(clock)))
    out = io.StringIO()
    with TrainView(100, out) as view:
        for step in range(100):
            view.show(record(step))
    lines = out.getvalue().splitlines()
    assert 8 <= len(lines) <= 12 and lines[0].startswith("step 1/100") and lines[-1].startswith("step 100/100")
    assert "\x1b" not in out.getvalue() and "\r" not in out.getvalue()


def test_scores_and_alarms_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    with TrainView(100, out) as view:
        view.show(record(0))
        view.show(record(1, valid={"fr": 1.5}, alarms=["expert 1 of layer 2 [balance] load " + "x" * 200]))
    lines = out.getvalue().splitlines()
    assert lines[1] == "alarm: expert 1 of layer 2 [balance] load " + "x" * 200
    assert lines[2] == "step 2, bits per byte: fr 1.500"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminal_shows_one_line_that_fits(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(train_view, "_SECONDS_BETWEEN", {True: 0.0, False: 0.0})
    out = Terminal()
    with TrainView(100, out) as view:
        view.show(record(0))
        view.show(record(1, valid={"fr": 1.5}))
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", out.getvalue())
    assert plain.count("\n") == 2 and plain.endswith("\n")  # after the scores and the last line
    drawn = [piece for piece in re.split(r"[\r\n]", plain) if piece.startswith("step 2/100")]
    assert len(drawn) == 2 and len(drawn[0]) < width and ("entropy" in drawn[0]) == (width == 200)
    assert "left" in drawn[0]

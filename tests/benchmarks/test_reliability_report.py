"""The table of docs/reliability.md from the figures that tests leave."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "reliability_report.py"


@pytest.fixture(scope="module")
def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reliability_report", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_numbers_have_their_units(report: ModuleType) -> None:
    row = report.row("overload", {"clients": 1000, "refusal_ms": 1.2345, "answers_per_s": 12.5, "slowest_s": 0.5})
    assert row == "| overload | clients 1,000; refusal 1.23 ms; answers 12.5/s; slowest 0.5 s |"


def test_the_page_is_filled_again_and_again(report: ModuleType) -> None:
    page = f"a\n{report.BEGIN}old\n{report.END}\nb\n"
    once = report.filled(page, {"b": {"n": 2}, "a": {"n": 1}})
    assert once == f"a\n{report.BEGIN}| test | figures |\n|---|---|\n| a | n 1 |\n| b | n 2 |\n{report.END}\nb\n"
    assert report.filled(once, {"b": {"n": 2}, "a": {"n": 1}}) == once


def test_the_page_has_a_place_for_them(report: ModuleType) -> None:
    assert report.filled(report.PAGE.read_text("utf-8"), {"a": {"n": 1}}).count("| a | n 1 |") == 1


def test_without_a_file_it_says_how(report: ModuleType) -> None:
    with pytest.raises(SystemExit, match="COTERIE_FIGURES"):
        report.main([])

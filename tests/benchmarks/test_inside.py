"""docs/inside.md says what the report says, whichever way its figures fall; the page names pictures that are there."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("inside", FOLDER / "inside.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("inside_page", None)


def section(key: str, facts: dict[str, Any], n_plots: int = 3) -> dict[str, Any]:
    plots = [key, *(f"{key}-{n}" for n in range(2, n_plots + 1))][:n_plots]
    return {
        "key": key, "title": f"Of {key}", "sentence": f"The sentence of {key}.", "plots": plots, "note": "How.",
        "facts": facts,
    }  # fmt: skip


def report(
    *,
    p: float | None = 0.001,
    moved: float = 0.3,
    first: list[float] | None = None,
    lru: float = 0.7,
    given: float = 0.1,
) -> Any:
    ours = {"first": first or [0.14, 0.3, 0.2], "either": [0.48, 0.64, 0.5], "first_given_shares": [given] * 3}
    mean = {"first": [14.1, 26.4, 22.7], "either": [48.0, 63.7, 50.9]}
    chance, at_half = {"first": 0.125, "either": 0.4643}, {"lru": lru, "optimal": 0.8}
    return {
        "model": "demo", "tokens": 12345, "layers": 3, "experts": 8, "experts_per_token": 2, "domains": ["de", "x"],
        "sections": [
            section("domains", {"all": {"p_all": p, "moved": [moved], "by_chance": [0.01]}}),
            section("kinds", {}, n_plots=0),
            section("repeats", {"by_domain": {"all": ours}, "random": chance, "paper_mean": mean}),
            section("caching", {"half": 12, "experts": 24, "by_layer": {"at_half": at_half}}),
        ],
    }  # fmt: skip


def test_every_finding_is_there_with_its_pictures(inside: ModuleType) -> None:
    text = inside.inside_page(report())
    assert "12,345 tokens of German and x" in text and "coterie trace record demo" in text
    assert all(f"The sentence of {key}." in text for key in ("domains", "kinds", "repeats", "caching"))
    assert inside.pictures_of(report()) == ["domains", "repeats", "repeats-2", "caching", "caching-2"]
    assert all(f"(inside-{name}.svg)" in text for name in inside.pictures_of(report()))
    assert max(map(len, text.splitlines())) <= 130


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "It is otherwise here"),
        ({"p": 0.4}, "The same here"),
        ({"moved": 0.015}, "Much the same here"),
        ({"p": None}, "says nothing about it"),
        ({}, "as in the paper) and 20.0% at the last"),
        ({"first": [0.2, 0.3, 0.9]}, "where the paper has most in the middle"),
        ({"first": [0.5, 0.2, 0.13]}, "nearest to chance is layer 2"),
        ({}, "so it is the neighbour that counts"),
        ({"given": 0.25}, "25.0% at layer 1, so most of it is the domain's favourites"),
        ({"lru": 0.51}, "next to nothing to gain"),
        ({"lru": 0.7}, "It helps here, too"),
    ],
)
def test_comparisons_follow_the_figures(inside: ModuleType, changes: dict[str, Any], said: str) -> None:
    assert said in " ".join(inside.inside_page(report(**changes)).split())


def test_the_page_is_written_with_its_pictures_and_old_ones_go(inside: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/inside-old.svg").write_text("<svg/>")
    (tmp_path / "docs/evidence-1.svg").write_text("<svg/>")
    (tmp_path / "report.json").write_text(json.dumps(report()))
    for name in inside.pictures_of(report()):
        (tmp_path / f"{name}.svg").write_text(name)
    inside.write_docs(tmp_path, tmp_path / "docs")
    assert sorted(p.name for p in (tmp_path / "docs").iterdir()) == [
        "evidence-1.svg", "inside-caching-2.svg", "inside-caching.svg", "inside-domains.svg", "inside-repeats-2.svg",
        "inside-repeats.svg", "inside.md",
    ]  # fmt: skip


def test_what_is_in_docs_shows_pictures_that_are_there() -> None:
    docs = FOLDER.parent / "docs"
    if not (docs / "inside.md").exists():
        pytest.skip("docs/inside.md has not been written yet: python benchmarks/inside.py writes it")
    text = (docs / "inside.md").read_text(encoding="utf-8")
    shown = {part.split(")")[0] for part in text.split("](")[1:] if part.startswith("inside-")}
    assert shown == {p.name for p in docs.glob("inside-*.svg")} and shown

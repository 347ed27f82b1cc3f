"""`doctor`: it reports, it advises, and it never shows a secret."""

import json
import sys
from typing import Any

import pytest

from coterie.cli.doctor import examine, find_problems, kernels_text, redacted_environment
from coterie.cli.main import main
from coterie.kernels import cpu_choice


def healthy() -> dict[str, Any]:
    return {
        "packages": {"torch": "2.13.0"},
        "torch": {"version": "2.13.0", "cuda": None, "device": "cpu", "threads": 2},
        "kernels": {"cpu": "avx2", "names": ["avx2", "portable", "reference"], "error": None},
        "gpus": [],
        "demo": {"there": True},
        "memory": {"total": 8 << 30, "available": 4 << 30},
        "cpu": {"usable": 2, "bf16": True},
        "hub": {"cache": "/c", "free": 10**12, "writable": True, "offline": False},
    }


def test_nothing_is_wrong_with_a_healthy_machine() -> None:
    assert find_problems(healthy()) == []


@pytest.mark.parametrize(
    ("part", "change", "what", "mend"),
    [
        ("packages", {"tokenizers": None}, "tokenizers is missing", "pip install --upgrade tokenizers"),
        ("torch", {"error": "ImportError: libx.so"}, "libx.so", "install torch again"),
        ("torch", {"threads": 64}, "64 threads", "OMP_NUM_THREADS=2"),
        ("kernels", {"cpu": "reference", "names": ["reference"]}, "were not built", "apt install g++"),
        ("kernels", {"cpu": "reference"}, "COTERIE_KERNELS asks for plain torch", "unset COTERIE_KERNELS"),
        ("kernels", {"error": "the kernels 'x' are not there, expected one of"}, "'x'", "unset COTERIE_KERNELS"),
        ("kernels", {"error": "undefined symbol"}, "undefined symbol", "install coterie again"),
        ("demo", {"there": False}, "model that ships", "install coterie again"),
        ("memory", {"available": 10**8}, "100 MB of memory", "close other programs"),
        ("cpu", {"bf16": False}, "no bf16 instructions", "smaller model"),
        ("hub", {"writable": False}, "cannot be written", "HF_HOME"),
        ("hub", {"free": 10**9}, "1.00 GB of disk", "HF_HOME"),
        ("hub", {"offline": True}, "HF_HUB_OFFLINE", "unset"),
    ],
)
def test_each_problem_is_named_with_its_remedy(part: str, change: dict[str, Any], what: str, mend: str) -> None:
    found = healthy()
    found[part] |= change
    (problem,) = find_problems(found)
    assert what in problem["what"] and mend in problem["mend"]


@pytest.mark.parametrize(
    ("kernels", "text"),
    [
        (
            {"cpu": "avx2", "names": ["avx512vnni", "avx2", "portable", "reference"]},
            "avx2 (native; also: avx512vnni, portable)",
        ),
        ({"cpu": "portable", "names": ["portable", "reference"]}, "portable (native)"),
        ({"cpu": "reference", "names": ["portable", "reference"]}, "reference (plain torch; also: portable)"),
        (
            {"cpu": "reference", "names": ["reference"]},
            "reference (plain torch): the native kernels were not built",
        ),
    ],
)
def test_which_kernels_are_in_use(kernels: dict[str, Any], text: str) -> None:
    assert kernels_text(kernels | {"error": None}) == text


def test_a_machine_without_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a name in the environment that is none: a finding each, not a failure."""
    cpu_choice.state.cache_clear()
    try:
        monkeypatch.setitem(sys.modules, "coterie._native", None)
        found = examine()["kernels"]
        assert found["cpu"] == "reference" and found["names"] == ["reference"]
        monkeypatch.undo()
        monkeypatch.setenv("COTERIE_KERNELS", "sse9")
        cpu_choice.state.cache_clear()
        assert "'sse9' are not there" in examine()["kernels"]["error"]
    finally:
        monkeypatch.undo()
        cpu_choice.state.cache_clear()


def test_a_gpu_that_torch_cannot_use_is_a_problem() -> None:
    found = healthy() | {"gpus": [{"name": "H200", "total": 1, "free": 1}]}
    (problem,) = find_problems(found)
    assert "H200" in problem["what"] and "CUDA build" in problem["mend"]


def test_secrets_are_not_shown() -> None:
    environment = {
        "HF_TOKEN": "hf_abc",
        "HF_HOME": "/data",
        "HTTPS_PROXY": "http://me:pw@proxy:1",
        "COTERIE_API_KEY": "k",
        "HF_OTHER": "x hf_abcdef",
        "SHELL": "/bin/sh",
    }
    shown = redacted_environment(environment)
    assert shown["HF_HOME"] == "/data" and shown["HTTPS_PROXY"] == "http://(hidden)@proxy:1"
    assert shown["HF_TOKEN"] == shown["COTERIE_API_KEY"] == shown["HF_OTHER"] == "(set, not shown)"
    assert "SHELL" not in shown


def test_the_command_reports_as_text_and_as_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "torch" in text and "kernels" in text and "hf_very_secret" not in text
    assert main(["doctor", "--json"]) == 0
    out = capsys.readouterr().out
    document = json.loads(out)
    assert "hf_very_secret" not in out and set(examine()) | {"problems"} == set(document)
    assert document["torch"]["threads"] >= 1 and document["memory"]["total"] >= document["memory"]["available"]

"""The benchmarks run, on models so small that their figures mean nothing."""

import gzip
import importlib.util
import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from coterie.checkpoint.convert import convert

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(p.stem for p in FOLDER.glob("*.py") if "\ndef main(argv" in p.read_text("utf-8"))


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(request.param, FOLDER / f"{request.param}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", SCRIPTS, indirect=True)
def test_help(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        script.main(["--help"])
    out = capsys.readouterr().out
    assert (
        done.value.code == 0
        and ("--rounds" in out or "--windows" in out)
        and (script.__doc__ or "").splitlines()[0] in out
    )


@pytest.mark.parametrize("script", ["decode_small"], indirect=True)
@pytest.mark.parametrize("is_packed", [False, True])
def test_decode_small(
    script: ModuleType, is_packed: bool, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if is_packed:
        convert(tiny_folder, tmp_path / "packed", to="packed", type="int8")
    model = tmp_path / "packed" if is_packed else tiny_folder
    script.main(["--model", str(model), "--tokens", "3", "--rounds", "1"])
    out = capsys.readouterr().out
    assert "transformers loop batched_mm" in out and "ours / best peer" in out


@pytest.mark.parametrize("script", ["mixtral_slice"], indirect=True)
def test_mixtral_slice(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--layers", "1", "--scale", "64", "--prompt", "9", "--tokens", "2", "--rounds", "1"])
    assert capsys.readouterr().out.count("ours / best peer") == 2


@pytest.mark.parametrize("script", ["train_turns"], indirect=True)
def test_train_turns(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--rounds", "1", "--scale", "16", "--steps", "2"])
    assert "ratio over 1 turns" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["train_step"], indirect=True)
@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_train_step(script: ModuleType, clock: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--scale", "8", "--batch", "2", "--length", "16", "--curve", "3", "--rounds", "1", "--clock", clock]
    script.main([*options, "--threads", str(torch.get_num_threads())])
    out = capsys.readouterr().out
    assert out.count("ours / best peer") == 2 and out.count("matrix peak") == 2
    found = re.search(r"largest difference (\S+)", out)
    assert found and float(found[1]) < 1e-5


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no posix_fadvise")
@pytest.mark.parametrize("script", ["load_cold"], indirect=True)
@pytest.mark.parametrize("keep", [[], ["--keep"]])
def test_load_cold_cleans_up(
    script: ModuleType, keep: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(["--layers", "1", "--scale", "64", "--folder", str(tmp_path), "--rounds", "1", *keep])
    assert "ours / best peer" in capsys.readouterr().out
    assert any(tmp_path.iterdir()) is bool(keep)


@pytest.mark.parametrize("script", ["quantization"], indirect=True)
def test_quantization(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").mkdir()
    for name in ("valid", "train"):
        with gzip.open(tmp_path / "text" / f"en.{name}.jsonl.gz", "wt") as f:
            f.write(json.dumps({"text": "Once upon a time there was a king who had three daughters. " * 60}))
    monkeypatch.setenv("COTERIE_DATA", str(tmp_path))
    options = ["--windows", "1", "--length", "64", "--types", "int8,int2", "--methods", "rtn,hqq + text"]
    script.main([*options, "--svg", str(tmp_path / "x.svg")])
    assert capsys.readouterr().out.count("| int2 |") == 2
    assert (tmp_path / "x.svg").read_text().count("<circle") == 4


@pytest.mark.parametrize("script", ["fidelity"], indirect=True)
def test_fidelity(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("COTERIE_LLAMA_PYTHON", "COTERIE_DATA"):
        monkeypatch.delenv(name, raising=False)
    script.main(["--windows", "1", "--length", "24", "--hidden", "256", "--threads", "1"])
    found = re.findall(r"coterie +mean (\S+), clear (\S+),", capsys.readouterr().out)
    assert len(found) == 2, "the random model and the one that ships"
    assert all(0 < float(clear) < 5e-3 for _, clear in found), "rounded activations, and nothing worse"


@pytest.mark.parametrize("script", ["checkpoint_state"], indirect=True)
def test_checkpoint_state(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--folder", str(tmp_path), "--gigabytes", "0.001", "--rounds", "1"])
    out = capsys.readouterr().out
    assert "torch.save" in out and "verify and load" in out and list(tmp_path.iterdir()) == []


@pytest.mark.full
@pytest.mark.parametrize("script", ["plan"], indirect=True)
def test_plan_is_near_what_training_takes(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory alone: seconds depend on what else the machine does."""
    script.main(["--tiny", "--steps", "60", "--rounds", "1"])
    seconds, size = capsys.readouterr().out.splitlines()[-2:]
    assert seconds.startswith("seconds") and size.startswith("bytes")
    assert 0.9 <= float(size.split()[-1]) <= 1.1, size


@pytest.mark.parametrize("script", ["trace_report"], indirect=True)
def test_trace_report(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    script.main(["--tokens", "3000", "--layers", "2", "--rounds", "1"])
    out = capsys.readouterr().out
    assert "3,000 tokens, 2 layers" in out and re.search(r"page +0\.\d+ MB", out)


@pytest.mark.parametrize("script", ["serve"], indirect=True)
def test_serve_beside_a_peer(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The peer is our own server behind llama-server's flags."""
    peer = tmp_path / "llama-server"
    peer.write_text(f'#!/bin/sh\nexec {sys.executable} -m coterie serve "m=$2" --port "$6"\n')
    peer.chmod(0o755)
    sizes = ["--scale", "16", "--layers", "1", "--chats", "2", "--prompt", "9", "--tokens", "5", "--system", "70"]
    rows = ["--rows", "chats,own,prefix,routing", "--rounds", "1", "--llama-server", str(peer)]
    script.main([*sizes, *rows, "--folder", str(tmp_path), "--threads", str(torch.get_num_threads())])
    out = capsys.readouterr().out
    assert out.count("coterie / llama-server") == 3 and out.count("served / Engine") == 2
    assert "experts in the stream / none" in out and "times" in out and not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize("script", ["serve"], indirect=True)
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rows", "chat"], "--rows has chat, expected some of chats,own"),
        (["--model", "/nowhere.gguf", "--rows", "own"], "/nowhere.gguf"),
    ],
)
def test_serve_says_what_is_wrong(
    script: ModuleType, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        script.main(options)
    assert says in f"{done.value.code} {capsys.readouterr().err}"


@pytest.mark.parametrize("script", ["served"], indirect=True)
def test_rates_of_a_wave_by_hand(script: ModuleType) -> None:
    """One writes at 1, 2, 3, 4, the other at 2, 3, 4, 5 seconds after both were sent at 0."""
    wave = script.Wave(0.0, [[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]])
    assert (wave.rate, wave.decode_rate, wave.first_ms) == (8 / 5, 2.0, 1500.0)
    assert math.isnan(script.Wave(0.0, [[1.0, 2.0], [3.0, 4.0]]).decode_rate)
    assert script._each_token([1.0, 2.0], 5) == [1.0, 1.0, 1.0, 2.0, 2.0]
    assert script._each_token([1.0, 2.0, 3.0], 3) == [1.0, 2.0, 3.0]

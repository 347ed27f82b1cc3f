import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coterie.cli.main import main

WORDS = [a + b + c for a in "bdfglmnprst" for b in "aeiou" for c in ("n", "ra", "lo", "s", "t", "mi")]
RECIPE = """
[model]
hidden_size = 16
intermediate_size = 16
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
num_local_experts = 4
max_position_embeddings = 64
[data]
files = ["{there}/web", "{there}/more.jsonl.gz"]
weights = [0.75, 0.25]
valid = ["{there}/web/b.parquet"]
tokenizer = "{there}/tokenizer"
documents = "masked"
[train]
steps = 6
batch = 4
sequence = 32
accumulate = 2
[run]
out = "{there}/run"
"""


def stories(n: int, first: int = 0) -> list[str]:
    return [
        " ".join(f"{WORDS[(i * 7 + j * j) % len(WORDS)]} {WORDS[(i + j) % len(WORDS)]}." for j in range(20))
        for i in range(first, first + n)
    ]


def as_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def recipe(tmp_path: Path, sentencepiece_bytes: bytes) -> Path:
    pyarrow, zstandard = pytest.importorskip("pyarrow"), pytest.importorskip("zstandard")
    from pyarrow import parquet

    (tmp_path / "web" / "deep").mkdir(parents=True)
    (tmp_path / "web" / "a.txt").write_text("\n".join(stories(20)))
    (tmp_path / "web" / "deep" / "c.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(as_lines(stories(60))))
    parquet.write_table(pyarrow.table({"text": stories(30, 60)}), tmp_path / "web" / "b.parquet")
    (tmp_path / "more.jsonl.gz").write_bytes(gzip.compress(as_lines(stories(40, 90))))
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.model").write_bytes(sentencepiece_bytes)
    (tmp_path / "r.toml").write_text(RECIPE.format(there=tmp_path))
    return tmp_path / "r.toml"


def test_a_mixture_of_folders_in_every_format_with_masked_documents(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe)]) == 0
    said, folder = capsys.readouterr().err, recipe.parent / "run"
    assert "web: " in said and "more: " in said
    manifests = {
        path.parent.name.rsplit("-", 1)[0]: json.loads(path.read_text())
        for path in (folder / "tokens").glob("*/manifest.json")
    }
    documents = {name: sum(s["documents"] for s in m["shards"]) for name, m in manifests.items()}
    assert documents == {"web": 1 + 30 + 60, "more": 40, "b": 30}
    assert json.loads((folder / "scores.json").read_text()).keys() == {"b"}
    recipe.write_text(recipe.read_text().replace('"masked"', '"packed"'))
    assert main(["train", str(recipe)]) == 2
    assert "documents" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("more.jsonl.gz", "more.jsonl.gz, line {n}, cannot be read: the compressed data breaks off before its end"),
        (
            "web/deep/c.jsonl.zst",
            "c.jsonl.zst, line {n}, cannot be read: the compressed data breaks off before its end",
        ),
        ("web/b.parquet", "b.parquet, after row 0, cannot be read as Parquet"),
    ],
)
def test_a_file_that_breaks_off_is_one_sentence(
    recipe: Path, broken: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe.parent / broken
    path.write_bytes(path.read_bytes()[:-20])
    assert main(["train", str(recipe)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("coterie: ")]
    assert len(errors) == 1 and all(part in errors[0] for part in sentence.split("{n}"))
    assert not list((recipe.parent / "run" / "tokens").glob(f"{Path(broken).name.split('.')[0]}-*"))


def test_a_vocabulary_is_not_trained_on_half_a_file(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "more.jsonl.gz").write_bytes((recipe.parent / "more.jsonl.gz").read_bytes()[:-20])
    wanted = recipe.read_text().replace(f'"{recipe.parent}/tokenizer"', "{ vocab_size = 512 }")
    recipe.write_text(wanted)
    assert main(["train", str(recipe), "--tokenizer"]) == 2
    assert "the compressed data breaks off" in capsys.readouterr().err
    assert not (recipe.parent / "run" / "tokenizer").exists()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('"{there}/web"', '"{there}/empty"', "empty has no text in or below it: expected .txt and .jsonl files"),
        ('"{there}/web"', '"{there}/none"', "none is not a file or a folder"),
        ('"{there}/web"', '"$NO_SUCH/web"', "$NO_SUCH/web: the environment variable NO_SUCH is not set; set it"),
        ('"{there}/web"', '"{there}/r.toml"', "r.toml is of no format that text is read from"),
        ("sequence = 32", "sequence = 64\nbatch = 4", "more has "),
        ('"masked"', '"mask"', "[data] documents is 'mask', supported now: 'packed', 'masked'"),
    ],
)
def test_what_a_recipe_gets_wrong_about_its_text(
    recipe: Path, old: str, new: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    there = recipe.parent
    (there / "empty").mkdir()
    text = recipe.read_text().replace(old.format(there=there), new.replace("\nbatch = 4", "").format(there=there))
    if "more has" in sentence:  # fewer tokens than one sequence
        (there / "more.jsonl.gz").write_bytes(gzip.compress(as_lines(["ban"])))
    recipe.write_text(text)
    assert main(["train", str(recipe)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("coterie: ")]
    assert len(errors) == 1 and sentence in errors[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_while_it_tokenises(recipe: Path, number: signal.Signals) -> None:
    """Its processes end with it, nothing half-written is used, and the same command goes on."""
    there = recipe.parent
    (there / "big.jsonl").write_bytes(as_lines(stories(6000) * 4))
    recipe.write_text(recipe.read_text().replace("more.jsonl.gz", "big.jsonl"))
    run = subprocess.Popen(
        [sys.executable, "-m", "coterie", "train", str(recipe), "--steps", "1"], stderr=subprocess.PIPE, text=True
    )
    workers: list[int] = []
    deadline = time.monotonic() + 90
    while not workers and time.monotonic() < deadline:
        time.sleep(0.02)
        workers = children(run.pid)
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    assert run.returncode == (130 if number == signal.SIGINT else -9), said
    assert "Traceback" not in said
    assert ("the same command goes on behind the last whole shard" in said) == (number == signal.SIGINT)
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers and not any(map(is_running, workers))
    assert main(["train", str(recipe), "--steps", "1"]) == 0
    assert not list((there / "run" / "tokens").rglob("*.partial-*"))


def test_the_recipe_of_the_documentation_runs(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import zstandard
    from pyarrow import parquet

    there = recipe.parent
    monkeypatch.chdir(there)
    monkeypatch.setenv("TEXT", str(there))
    parquet.write_table(pyarrow.table({"text": stories(60)}), there / "books.parquet")
    (there / "code.jsonl.zst").write_bytes(zstandard.compress(as_lines(stories(40, 200))))
    (there / "valid.jsonl.gz").write_bytes(gzip.compress(as_lines(stories(10, 300))))
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    (there / "mixture.toml").write_text(re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0])
    assert main(["train", "mixture.toml", "--tokenizer"]) == 0
    assert main(["train", "mixture.toml"]) == 0
    assert (there / "runs" / "mixture" / "model" / "config.json").exists()


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    if not tasks.is_dir():
        pytest.skip("needs /proc")
    found = [path.read_text().split() for path in tasks.glob("*/children")]
    return [int(child) for line in found for child in line]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False

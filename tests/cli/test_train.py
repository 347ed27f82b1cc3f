import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coterie.checkpoint.load import load_model
from coterie.cli.main import main
from coterie.tokenizer.load import load_tokenizer

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
files = ["$TEXT/a.txt"]
valid = ["$TEXT/a.txt"]
tokenizer = { vocab_size = 512 }
[train]
steps = 8
batch = 4
sequence = 32
[run]
out = "$TEXT/run"
save_every = 2
eval_every = 4
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    words = [a + b + c for a in "bdfglmnprst" for b in "aeiou" for c in ("n", "ra", "lo", "s", "t", "mi")]
    text = "\n".join(f"{w} {words[-i]} {words[i // 3]} saw {w}{words[i // 2]} at {i}." for i, w in enumerate(words)) * 2
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "r.toml").write_text(RECIPE)
    monkeypatch.setenv("TEXT", str(tmp_path))
    return tmp_path / "r.toml"


def train(recipe: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coterie", "train", str(recipe), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_recipe_to_a_folder_that_loads(recipe: Path) -> None:
    done = train(recipe, "--steps", "3")
    assert done.returncode == 0, done.stderr
    assert "stopped at step 3 of 8" in done.stderr
    done = train(recipe, "--json")
    assert done.returncode == 0, done.stderr
    assert "resuming at step 3" in done.stderr
    scores = json.loads(done.stdout)
    assert 0 < scores["a.txt"]["bits_per_byte"] < 9 and len(scores["a.txt"]["shares"]) == 2
    folder = recipe.parent / "run" / "model"
    model = load_model(folder)
    assert model.config.num_local_experts == 4 and load_tokenizer(folder).vocab_size == 512
    assert len((recipe.parent / "run" / "log.jsonl").read_text().splitlines()) == 8


def test_killed_run_goes_on_from_its_last_state(recipe: Path) -> None:
    text = recipe.read_text().replace("steps = 8", "steps = 5000")
    recipe.write_text(text)
    command = [sys.executable, "-m", "coterie", "train", str(recipe)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ)
    state = recipe.parent / "run" / "state.safetensors"
    deadline = time.monotonic() + 90
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    again = train(recipe, "--steps", "1")
    assert again.returncode == 0 and "resuming at step" in again.stderr
    logged = [json.loads(line)["step"] for line in (recipe.parent / "run" / "log.jsonl").read_text().splitlines()]
    assert logged and logged == list(range(len(logged)))


def test_tensorboard_is_a_second_log(recipe: Path) -> None:
    pytest.importorskip("tensorboard")
    recipe.write_text(recipe.read_text() + "tensorboard = true\n")
    assert train(recipe, "--steps", "2").returncode == 0
    done = train(recipe, "--steps", "3")
    assert done.returncode == 0 and "bits/byte" in done.stderr, done.stderr
    assert len(list((recipe.parent / "run" / "tensorboard").iterdir())) == 2


def test_missing_tensorboard_is_said_before_any_work(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    recipe.write_text(recipe.read_text() + "tensorboard = true\n")
    assert main(["train", str(recipe)]) == 2
    assert "pip install 'coterie[train]'" in capsys.readouterr().err
    assert not (recipe.parent / "run").exists()


def test_unset_data_folder_is_one_sentence(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEXT")
    done = train(recipe)
    assert done.returncode == 2
    sentence = "the environment variable TEXT is not set; set it (export TEXT=...) or write the path out"
    assert done.stderr.strip().splitlines() == [f"coterie: $TEXT/run: {sentence}"]


def test_fresh_removes_what_a_run_left_and_nothing_else(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recipe.parent / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    recipe.write_text(recipe.read_text().replace("a.txt", "none.txt"))  # so that it stops right after
    assert main(["train", str(recipe), "--fresh"]) == 2
    assert (folder / "model").exists()  # no run was here, so that folder is somebody's own
    (folder / "log.jsonl").write_text("")
    assert main(["train", str(recipe), "--fresh"]) == 2
    assert {p.name for p in folder.iterdir()} == {"notes.txt"}
    assert "none.txt" in capsys.readouterr().err


def test_only_the_vocabulary(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), "--tokenizer"]) == 0
    out = capsys.readouterr().out.split()
    folder = recipe.parent / "run"
    assert out[0] == "a.txt" and 1.5 < float(out[1]) < 5 and out[2:] == ["bytes", "a", "token"]
    assert load_tokenizer(folder / "tokenizer").vocab_size == 512 and not (folder / "log.jsonl").exists()
    assert main(["train", str(recipe), "--tokenizer", "--json"]) == 0  # it is there already
    found = json.loads(capsys.readouterr().out)
    assert found["tokenizer"] == str(folder / "tokenizer") and found["vocab_size"] == 512
    assert found["bytes_per_token"]["a.txt"] == pytest.approx(float(out[1]), abs=0.01)


def test_another_vocabulary_than_the_one_in_the_folder_is_refused(
    recipe: Path, sentencepiece_bytes: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recipe.parent / "run" / "tokenizer"
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_bytes)
    assert main(["train", str(recipe)]) == 2
    assert "has 340 pieces from an earlier run and the recipe asks for 512" in capsys.readouterr().err


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(
    recipe: Path, sentencepiece_bytes: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe.parent / "tokenizer.model").write_bytes(sentencepiece_bytes)
    text = recipe.read_text().replace("{ vocab_size = 512 }", '"$TEXT"')
    recipe.write_text(text.replace("[model]", "[model]\nvocab_size = 100"))
    assert main(["train", str(recipe)]) == 2
    assert "vocab_size is 100" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"text": 1}\n', "", '{"text": "a"}\n'])
def test_text_that_no_vocabulary_can_be_trained_on(
    recipe: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe.parent / "a.jsonl").write_text(content)
    recipe.write_text(recipe.read_text().replace("a.txt", "a.jsonl"))
    assert main(["train", str(recipe)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("coterie: ")]
    assert len(errors) == 1 and "fault of coterie" not in errors[0]
    assert not (recipe.parent / "run" / "tokenizer" / "tokenizer.model").exists()

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coterie.checkpoint.load import load_model
from coterie.cli.main import main
from coterie.tokenizer.load import load_tokenizer


@pytest.fixture
def recipe(recipe_without_text: Path, words: list[str]) -> Path:
    text = "\n".join(f"{w} {words[-i]} {words[i // 3]} saw {w}{words[i // 2]} at {i}." for i, w in enumerate(words)) * 2
    (recipe_without_text.parent / "a.txt").write_text(text)
    return recipe_without_text


def train(recipe: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coterie", "train", str(recipe), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_recipe_to_a_folder_that_loads(recipe: Path) -> None:
    done = train(recipe, "--steps", "3", "--json")
    assert done.returncode == 0 and json.loads(done.stdout) is None, done.stderr
    assert "stopped at step 3 of 8; without --steps, or with more, it goes on" in done.stderr
    done = train(recipe, "--json")
    assert done.returncode == 0, done.stderr
    assert "resuming at step 3" in done.stderr
    scores = json.loads(done.stdout)
    assert 0 < scores["a.txt"]["bits_per_byte"] < 9 and len(scores["a.txt"]["shares"]) == 2
    folder = recipe.parent / "run" / "model"
    model = load_model(folder)
    assert model.config.num_local_experts == 4 and load_tokenizer(folder).vocab_size == 512
    assert len((recipe.parent / "run" / "log.jsonl").read_text().splitlines()) == 8


def started(recipe: Path) -> "subprocess.Popen[str]":
    """A long run that has two checkpoints."""
    recipe.write_text(recipe.read_text().replace("steps = 8", "steps = 5000"))
    command = [sys.executable, "-m", "coterie", "train", str(recipe)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    checkpoints, deadline = recipe.parent / "run" / "checkpoints", time.monotonic() + 90
    while len(list(checkpoints.glob("step-????????"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    return run


def logged_steps(recipe: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (recipe.parent / "run" / "log.jsonl").read_text().splitlines()]


def test_killed_run_goes_on_from_its_last_state(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = started(recipe)
    run.kill()
    run.communicate()
    assert main(["train", str(recipe), "--steps", "1"]) == 0 and "resuming at step" in capsys.readouterr().err
    assert logged_steps(recipe) == list(range(len(logged_steps(recipe)))) and logged_steps(recipe)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.full)]
)
def test_an_interrupted_run_is_saved_and_says_how_to_go_on(
    recipe: Path, number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """And while it runs nobody else may; and when its state is damaged after that, the one before is taken."""
    run = started(recipe)
    assert main(["train", str(recipe)]) == 2
    assert f"coterie: process {run.pid} is training in" in capsys.readouterr().err
    run.send_signal(number)
    _, said = run.communicate()
    assert run.returncode == code
    saved = re.search(r"stopped and saved at step (\d+) of 5000; the same command goes on from there", said)
    assert saved, said
    newest = recipe.parent / "run" / "checkpoints" / f"step-{int(saved[1]):08d}"
    assert len(logged_steps(recipe)) == int(saved[1]) and newest.is_dir()
    os.truncate(newest / "state.safetensors", 100)
    assert main(["train", str(recipe), "--steps", "1"]) == 0
    said = capsys.readouterr().err
    assert f"a damaged checkpoint is passed over: {newest / 'state.safetensors'} has 100 bytes" in said
    resumed = re.search(r"resuming at step (\d+) of", said)
    assert resumed and 0 < int(resumed[1]) < int(saved[1])


def test_resuming_is_proved_beside_the_run_and_not_in_it(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), "--steps", "2"]) == 0
    folder = recipe.parent / "run"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["train", str(recipe), "--verify-resume", "--steps", "4"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().err
    assert "resuming is exact: 4 steps at a stretch and 2 + 2 with a new start give the same bits" in said
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert sorted(p.name for p in recipe.parent.iterdir()) == ["a.txt", "r.toml", "run"]


def test_a_resume_that_is_not_exact_is_shown(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [f"the tensor 't{n}' differs" for n in range(20)]
    monkeypatch.setattr("coterie.train.verify_resume.verify_resume", lambda train, folder, steps: found)
    assert main(["train", str(recipe), "--verify-resume"]) == 1
    said = capsys.readouterr().err
    assert "'t7' differs" in said and "'t8'" not in said and "not exact: 20 differences, the first 8 above" in said


def test_resuming_needs_two_steps_and_a_run_that_works(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), "--verify-resume", "--steps", "1"]) == 2
    assert "needs 2 steps or more" in capsys.readouterr().err
    assert main(["train", str(recipe), "--verify-resume", "--fresh"]) == 2
    assert "goes with --out, --steps and --ranks only" in capsys.readouterr().err
    (recipe.parent / "a.txt").unlink()
    assert main(["train", str(recipe), "--verify-resume"]) == 2
    assert "a.txt" in capsys.readouterr().err.splitlines()[-1]
    assert not (recipe.parent / "run").exists()


def test_a_router_that_could_not_learn_is_not_compared(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Top-k with the one expert a token of a recipe for Switch was trained, its weight 1 whatever the router did."""
    text = recipe.read_text().replace("num_local_experts = 4", "num_local_experts = 4\nnum_experts_per_tok = 1")
    recipe.write_text(text + '[router]\nkind = "switch"\n')
    assert main(["train", str(recipe), "--compare", "topk,switch"]) == 2
    table = (recipe.parent / "run" / "compare" / "table.md").read_text()
    assert "topk failed: RecipeError: the recipe: [model] norm_topk_prob is true with num_experts_per_tok 1" in table
    assert "| switch |" in table


def test_routers_compared_on_one_vocabulary(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("steps = 8", "steps = 4"))
    done = train(recipe, "--compare", "topk,switch", "--steps", "2")
    assert done.returncode == 0 and "2 of 2 routers are not trained to the end" in done.stderr, done.stderr
    done = train(recipe, "--compare", "topk,switch", "--json")
    assert done.returncode == 0 and "resuming at step 2 of 4" in done.stderr, done.stderr
    rows = json.loads(done.stdout)
    assert [row["kind"] for row in rows] == ["topk", "switch"] and rows[0]["active"] > rows[1]["active"]
    folder = recipe.parent / "run"
    assert {p.name for p in (folder / "compare").iterdir()} == {"topk", "switch", "table.md", "table.json", "plot.svg"}
    assert not (folder / "compare" / "topk" / "tokens").exists() and (folder / "tokens").exists()
    done = train(recipe, "--compare", "topk")
    assert "topk is complete" in done.stderr and done.stdout.startswith("Routers after 4 steps")


def test_an_unknown_router_is_named(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), "--compare", "topk,swich"]) == 2
    assert "did you mean 'switch'" in capsys.readouterr().err
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
    (recipe.parent / "none.txt").write_text("")
    recipe.write_text(recipe.read_text().replace("a.txt", "none.txt"))  # so that it stops right after
    assert main(["train", str(recipe), "--fresh"]) == 2
    assert (folder / "model").exists()  # no run was here, so that folder is somebody's own
    (folder / "log.jsonl").write_text("")
    assert main(["train", str(recipe), "--fresh"]) == 2
    assert {p.name for p in folder.iterdir()} == {"notes.txt", "lock"}
    (folder / "log.jsonl").write_text("")
    recipe.write_text(recipe.read_text().replace('valid = ["$TEXT/none.txt"]', 'valid = ["$TEXT/typo.txt"]'))
    assert main(["train", str(recipe), "--fresh"]) == 2
    assert "typo.txt is not a file" in capsys.readouterr().err and (folder / "log.jsonl").exists()


def test_a_model_that_memory_cannot_hold_is_refused_before_the_text_is_tokenised(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Mixtral 8x7B, which is what a recipe without [model] asks for; Linux would end the process without a word."""
    text = recipe.read_text()
    recipe.write_text(text[text.index("[data]") :])
    monkeypatch.setattr("coterie.train.footprint.available_memory", lambda device: 64 << 30)
    assert main(["train", str(recipe)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        said.startswith("coterie: training 46,4") and "GB for weights, masters and moments alone, and 68.7 GB" in said
    )
    assert not (recipe.parent / "run" / "tokens").exists()


def test_fresh_begins_anew_where_there_is_only_a_vocabulary(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recipe.parent / "run"
    (folder / "model").mkdir(parents=True)  # somebody's own
    recipe.write_text(recipe.read_text().replace('valid = ["$TEXT/a.txt"]', ""))
    assert main(["train", str(recipe), "--tokenizer"]) == 0
    recipe.write_text(recipe.read_text().replace("512", "514"))
    assert main(["train", str(recipe), "--tokenizer"]) == 2
    assert "or start again with --fresh" in capsys.readouterr().err
    assert main(["train", str(recipe), "--tokenizer", "--fresh"]) == 0
    assert load_tokenizer(folder / "tokenizer").vocab_size == 514 and (folder / "model").exists()


def test_ctrl_c_while_the_result_is_scored(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    recipe.write_text(
        recipe.read_text().replace("eval_every = 4", "eval_every = 400").replace("steps = 8", "steps = 2")
    )
    with monkeypatch.context() as patch:
        patch.setattr("coterie.cli.train_run.longest_window", interrupted)
        assert main(["train", str(recipe)]) == 130
    assert "stopped and saved at step 2 of 2; the same command goes on from there" in capsys.readouterr().err
    assert main(["train", str(recipe)]) == 0
    assert json.loads((recipe.parent / "run" / "scores.json").read_text()).keys() == {"a.txt"}


@pytest.mark.parametrize("option", [["--steps", "3"], ["--compare", "topk"]])
def test_options_that_would_do_nothing_beside_tokenizer(
    recipe: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe), "--tokenizer", *option]) == 2
    assert "--tokenizer trains no model; leave --steps and --compare out" in capsys.readouterr().err


def test_the_result_replaces_nothing_but_a_model(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """[run] out may name a folder that has a `model` of another kind; what a killed process left goes."""
    folder = recipe.parent / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "mine.py").write_text("")
    (folder / "model.partial-0a1b").mkdir()
    assert main(["train", str(recipe)]) == 2
    assert f"{folder / 'model'} is there and holds no model" in capsys.readouterr().err
    (folder / "model" / "mine.py").rename(folder / "model" / "config.json")
    assert main(["train", str(recipe), "--steps", "1"]) == 0
    assert sorted(path.name for path in folder.glob("model*")) == ["model"]


def test_a_model_that_the_last_update_spoilt_is_not_written(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = recipe.read_text().replace("steps = 8", "steps = 1\nwarmup = 0\nlr = 1e18\nweight_decay = 0")
    recipe.write_text(text)
    assert main(["train", str(recipe), "--json"]) == 2
    said = capsys.readouterr()
    assert "after the last step the model's loss on a.txt is nan, so no model is written" in said.err and not said.out
    assert not (recipe.parent / "run" / "model").exists()
    assert json.loads((recipe.parent / "run" / "log.jsonl").read_text())["valid"] == {"a.txt": None}


def test_a_tokenizer_that_is_a_file_is_refused_before_the_run(
    recipe: Path, sentencepiece_bytes: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run would end with a model that cannot be written, for want of the folder whose files go along."""
    (recipe.parent / "tokenizer.model").write_bytes(sentencepiece_bytes)
    recipe.write_text(recipe.read_text().replace("{ vocab_size = 512 }", '"$TEXT/tokenizer.model"'))
    assert main(["train", str(recipe)]) == 2
    assert "tokenizer.model, expected the folder that it is in" in capsys.readouterr().err


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

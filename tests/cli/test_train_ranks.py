"""`coterie train --ranks 2` as a person runs it: what listens, Ctrl-C, a rank that dies, and going on with one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from coterie.cli.train import command
from coterie.cli.train_ranks import _again

RECIPE = """
[model]
hidden_size = 32
intermediate_size = 32
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
num_local_experts = 4
max_position_embeddings = 64
[data]
files = ["{folder}/text.txt"]
valid = ["{folder}/text.txt"]
tokenizer = {{ vocab_size = 512 }}
[train]
steps = {steps}
batch = 4
sequence = 32
dtype = "float32"
[parallel]
expert = {expert}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
    text = " ".join(words[i * i % len(words)] + words[i * 7 % len(words)] for i in range(4000))
    (tmp_path / "text.txt").write_text(text)
    return tmp_path


def write_recipe(folder: Path, steps: int, expert: int) -> Path:
    path = folder / f"recipe-{steps}-{expert}.toml"
    path.write_text(RECIPE.format(folder=folder, steps=steps, expert=expert))
    return path


def start(recipe: Path, run: Path, *options: str) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "coterie", "train", str(recipe), "--out", str(run), *options]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for_steps(process: "subprocess.Popen[str]", run: Path, n: int) -> None:
    log = run / "log.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < n:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def children(process: "subprocess.Popen[str]") -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def listening(pid: int) -> Iterator[str]:
    """The addresses at which a process waits for connections, as /proc writes them: 0100007F is 127.0.0.1."""
    own = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        if match := re.match(r"socket:\[(\d+)\]", os.readlink(fd)):
            own.add(match[1])
    for family in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{family}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in own:
                yield local.partition(":")[0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_nothing_listens_outside_and_a_stopped_run_goes_on_with_any_number_of_ranks(folder: Path) -> None:
    run = folder / "run"
    process = start(write_recipe(folder, 40, 2), run, "--ranks", "2")
    wait_for_steps(process, run, 2)
    ranks = children(process)
    assert len(ranks) == 2
    assert {address for pid in ranks for address in listening(pid)} == {"0100007F"}
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130 and err.count("stopped and saved at step") == 1, err
    (saved,) = (run / "checkpoints").iterdir()
    assert len(list(saved.glob("shard-*"))) == 2

    process = start(write_recipe(folder, 40, 2), run, "--ranks", "2")
    wait_for_steps(process, run, int(saved.name.removeprefix("step-")) + 1)
    os.kill(children(process)[1], signal.SIGKILL)
    code, _, err = finish(process)
    assert code == 1 and err.splitlines()[-1].startswith("coterie: rank 1 was ended by SIGKILL"), err

    code, out, err = finish(start(write_recipe(folder, 40, 1), run, "--json"))
    assert code == 0 and f"resuming at step {int(saved.name.removeprefix('step-'))} of 40" in err, err
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == list(range(40))
    assert json.loads(out)["text.txt"]["tokens"] > 0


def test_two_ranks_write_one_model_and_one_result(folder: Path) -> None:
    run = folder / "run"
    code, out, err = finish(start(write_recipe(folder, 3, 2), run, "--ranks", "2", "--json"))
    assert code == 0, err
    assert json.loads(out).keys() == {"text.txt"} and err.count("training a vocabulary") == 1
    names = {path.name for path in (run / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


def test_a_layout_that_does_not_fit_is_one_sentence(folder: Path) -> None:
    code, _, err = finish(start(write_recipe(folder, 3, 4), folder / "run", "--ranks", "2"))
    assert code == 2 and err.count("\n") == 1 and "expert = 4 does not fit 2 ranks" in err, err


def test_ranks_get_the_same_words() -> None:
    words = ["r.toml", "--out", "a b", "--steps", "3", "--fresh", "--ranks", "2", "--json"]
    with command.make_context("train", list(words)) as context:
        assert isinstance(context, click.Context)
        again = _again(context)
    with command.make_context("train", again[1:]) as other:
        assert other.params == context.params | {"ranks": None} and again[0] == "train"

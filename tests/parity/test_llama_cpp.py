"""llama.cpp loads the GGUF files that are written here, makes the same ids of a text and continues it alike.

Needs a Python that has llama-cpp-python, in an environment of its own: COTERIE_LLAMA_PYTHON=/path/to/bin/python.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import coterie
from coterie.checkpoint.convert import convert
from coterie.checkpoint.hub import DEMO

PROMPTS = [
    "Il était une fois un roi",
    "def fibonacci(n):\n    ",
    "Es war einmal ein König, der",
    "It was a dark night, and the",
    "import os\n\n\nclass Reader:\n",
]
N_TOKENS = 50
CLEAR = 0.05  # a difference of the two best logits that rounding cannot turn round

_PEER = """
import json, sys
import numpy as np
from llama_cpp import Llama

task = json.load(sys.stdin)
model = Llama(task["path"], n_ctx=256, n_batch=256, n_threads=2, logits_all=True, verbose=False)
found = []
for ids in task["sequences"]:
    model.reset()
    model.eval(ids)
    logits = np.array(model.scores[: len(ids)])
    found.append({"best": logits.argmax(-1).tolist(), "is_finite": bool(np.isfinite(logits).all())})
texts = [model.tokenize(t.encode(), add_bos=True, special=False) for t in task["texts"]]
print("answer", json.dumps({"sequences": found, "texts": texts, "chat": model.metadata.get("tokenizer.chat_template")}))
"""


@pytest.fixture(scope="module")
def llama_python() -> str:
    python = os.environ.get("COTERIE_LLAMA_PYTHON")
    if not python:
        pytest.skip("COTERIE_LLAMA_PYTHON names no Python with llama-cpp-python")
    if not (DEMO / "model.safetensors").is_file():
        pytest.skip("the model that ships is not there")
    return python


def ask(python: str, path: Path, sequences: list[list[int]], texts: list[str]) -> Any:
    task = json.dumps({"path": str(path), "sequences": sequences, "texts": texts})
    done = subprocess.run([python, "-c", _PEER], input=task, capture_output=True, text=True, timeout=600)
    answers = [line for line in done.stdout.splitlines() if line.startswith("answer ")]
    assert answers, done.stderr[-2000:]
    return json.loads(answers[-1].removeprefix("answer "))


@pytest.mark.parametrize("type", ["f16", "bf16", "q8_0", "q4_0"])
def test_the_demo_is_loaded_and_continued_alike(llama_python: str, type: str, tmp_path: Path) -> None:
    path = tmp_path / f"demo.{type}.gguf"
    convert(DEMO, path, to="gguf", type=type)
    lm = coterie.load(path, dtype="float32")
    sequences = []
    for prompt in PROMPTS:
        ids = lm.tokenizer.encode(prompt, bos=True)
        sequences.append(ids + list(lm.generate(ids, max_tokens=N_TOKENS, logit_bias={2: -100.0}).token_ids))
    answer = ask(llama_python, path, sequences, PROMPTS)
    n_clear = n_same = 0
    for ids, theirs, theirs_ids, prompt in zip(sequences, answer["sequences"], answer["texts"], PROMPTS, strict=True):
        n_prompt = len(lm.tokenizer.encode(prompt, bos=True))
        assert theirs_ids == ids[:n_prompt] and theirs["is_finite"]
        two = lm.logits(ids).topk(2)
        is_clear = two.values[:, 0] - two.values[:, 1] > CLEAR
        is_same = two.indices[:, 0] == torch.tensor(theirs["best"])
        answered = slice(n_prompt - 1, len(ids) - 1)
        n_clear += int(is_clear[answered].sum())
        n_same += int((is_clear & is_same)[answered].sum())
    assert n_clear > 150
    if type == "f16":
        assert n_same == n_clear
    else:  # llama.cpp rounds activations to 8 bits beside quantised weights, and to bf16 beside bf16
        assert n_same > 0.9 * n_clear, f"{n_same} of {n_clear}"


def test_odd_text_makes_the_same_ids(llama_python: str, tmp_path: Path) -> None:
    texts = ["", " ", "  two  spaces ", "\ttab\n\nlines", "<s>[INST] Hi [/INST]</s>", "日本語 🙂", "a" * 100, "x\r\ny"]
    convert(DEMO, tmp_path / "demo.gguf", to="gguf", type="q8_0")
    lm = coterie.load(tmp_path / "demo.gguf")
    answer = ask(llama_python, tmp_path / "demo.gguf", [], texts)
    assert answer["texts"] == [lm.tokenizer.encode(text, bos=True) for text in texts]

"""`coterie train` from models: upcycled, merged, trained on; the certificate, the drift, the vocabulary."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from coterie.checkpoint.convert import convert
from coterie.checkpoint.huggingface import save_huggingface
from coterie.checkpoint.load import load_model
from coterie.cli.main import main
from coterie.cli.train_origin import Lineage
from coterie.model import Transformer

Recipe = Callable[..., Path]


@pytest.fixture
def dense(make_model: Callable[..., Transformer], tmp_path: Path, sentencepiece_bytes: bytes) -> Path:
    """A dense folder with a tokenizer of 340 pieces, and text beside it."""
    model = make_model(num_local_experts=None, vocab_size=340, num_hidden_layers=2, sliding_window=20)
    save_huggingface(tmp_path / "dense", model.config, model.tensors(), dtype="float32")
    (tmp_path / "dense" / "tokenizer.model").write_bytes(sentencepiece_bytes)
    (tmp_path / "a.txt").write_text("The king had three daughters. Il était une fois un roi.\n" * 200)
    return tmp_path / "dense"


@pytest.fixture
def write(tmp_path: Path) -> Recipe:
    def recipe(init: str, model: str = "num_local_experts = 4", steps: int = 2, data: str = "", rest: str = "") -> Path:
        lines = ["[init]", init, "[model]", model, "[data]", f'files = ["{tmp_path}/a.txt"]', data]
        lines += ["[train]", f"steps = {steps}", "batch = 4", "sequence = 32", 'dtype = "float32"', "warmup = 1"]
        lines += ["[run]", f'out = "{tmp_path}/run"', "eval_every = 1", rest]
        (tmp_path / "r.toml").write_text("\n".join(lines))
        return tmp_path / "r.toml"

    return recipe


def upcycling(tmp_path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((tmp_path / "run" / "upcycling.json").read_text())
    return document


def test_upcycles_certifies_trains_and_tells_how_far_experts_drifted(
    dense: Path, write: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(write(f'upcycle = "{dense}"'))]) == 0
    said = capsys.readouterr().err
    assert "upcycled from" in said and "the learning rate starts anew" in said
    assert "the two are equal but for rounding, as they must be" in said
    assert "after 2 steps two experts of a layer have a mean cosine of" in said and "1.000 at the start" in said
    found = upcycling(tmp_path)
    assert found["certificate"]["is_equality_expected"] and found["certificate"]["largest_logit_difference"] < 1e-10
    assert found["alike_at_start"] == [1.0, 1.0] and found["steps"] == 2 and max(found["alike_at_end"]) < 1
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[0]["alike"] < 1 and log[1]["alike"] < log[0]["alike"]
    model = load_model(tmp_path / "run" / "model")
    assert model.config.num_local_experts == 4 and model.config.sliding_window == 20
    assert (tmp_path / "run" / "model" / "tokenizer.model").exists()


def test_a_report_that_cannot_be_read_is_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was a fault of coterie's own, when a run that had nothing else to lose went on."""
    (tmp_path / "upcycling.json").write_text("{")
    assert Lineage(None, tmp_path).document == {}
    assert "upcycling.json cannot be read and is written anew" in capsys.readouterr().err


def test_a_run_goes_on_from_its_checkpoint_and_not_from_another_model(
    dense: Path, write: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(write(f'upcycle = "{dense}"')), "--steps", "1"]) == 0
    assert "largest logit difference" in capsys.readouterr().err
    assert main(["train", str(write(f'upcycle = "{dense}"\nmethod = "drop"'))]) == 2
    assert "init is" in capsys.readouterr().err
    assert main(["train", str(write(f'upcycle = "{dense}"'))]) == 0
    said = capsys.readouterr().err
    assert "resuming at step 1" in said and "largest logit difference" not in said and "1.000 at the start" in said


def test_a_scale_that_the_runs_type_rounds_is_certified_in_float64(
    dense: Path, write: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three segments: experts times 3, which float32 rounds. The certificate gave up on them."""
    init, model = f'upcycle = "{dense}"\nmethod = "split"\ngranularity = 3', "num_local_experts = 9"
    path = write(init, f"{model}\nnum_experts_per_tok = 6", steps=0)
    assert main(["train", str(path)]) == 0
    said = capsys.readouterr().err
    assert "the two are equal but for rounding, as they must be" in said and "rounded to the type of the run" in said
    found = upcycling(tmp_path)["certificate"]
    assert found["is_equality_expected"] and found["largest_logit_difference"] < 1e-10
    assert 1e-10 < found["largest_difference_rounded"] < 1e-4


@pytest.mark.parametrize("layout", ["mistral", "sharded", "packed"])
def test_no_steps_write_the_sparse_model_at_once(
    layout: str, dense: Path, write: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logits are the dense model's, whatever the layout the dense one came in."""
    source = tmp_path / "source"
    if layout == "sharded":
        monkeypatch.setattr("coterie.checkpoint.huggingface.LARGEST_SHARD", 20_000)
        convert(dense, source, to="huggingface", type="f32")
        assert len(list(source.glob("model-*.safetensors"))) > 2
    else:
        convert(dense, source, to=layout, type="int8" if layout == "packed" else "f32")
    init = f'upcycle = "{source}"\nmethod = "split"\ngranularity = 2'
    path = write(init, "num_local_experts = 8\nnum_experts_per_tok = 2", steps=0)
    assert main(["train", str(path)]) == 0
    assert upcycling(tmp_path)["certificate"]["largest_logit_difference"] < 1e-10
    sparse, plain = load_model(tmp_path / "run" / "model"), load_model(source, dtype="float32")
    assert sparse.config.intermediate_size == plain.config.intermediate_size // 2
    down, experts = plain.tensors()["layers.1.feed_forward.down"], sparse.tensors()["layers.1.moe.experts.down"]
    assert torch.equal(torch.cat([*experts[4:6]], 1) / 2, down)


def test_merged_models_and_their_prompts(
    dense: Path, write: Recipe, tmp_path: Path, make_model: Callable[..., Transformer],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    other = make_model(seed=1, num_local_experts=None, vocab_size=340, num_hidden_layers=2, sliding_window=20)
    save_huggingface(tmp_path / "other", other.config, other.tensors(), dtype="float32")
    (tmp_path / "b.txt").write_text("def king(n):\n    return [n, n + 1]\n")
    init = f'upcycle = ["{dense}", "{tmp_path}/other"]\nprompts = [["Es war einmal ein König"], ["{tmp_path}/b.txt"]]'
    assert main(["train", str(write(init, "", steps=0))]) == 0
    said = capsys.readouterr().err
    assert "merged 2 models into as many experts a layer" in said and "own prompts" in said
    model = load_model(tmp_path / "run" / "model")
    down = model.tensors()["layers.0.moe.experts.down"]
    assert torch.equal(down[1], other.tensors()["layers.0.feed_forward.down"])
    assert upcycling(tmp_path)["certificate"] is None


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_training_goes_on_from_a_model(
    kind: str, dense: Path, write: Recipe, tmp_path: Path, make_model: Callable[..., Transformer],
    sentencepiece_bytes: bytes,
) -> None:  # fmt: skip
    source = dense
    if kind == "sparse":
        source, model = tmp_path / "sparse", make_model(vocab_size=340)
        save_huggingface(source, model.config, model.tensors(), dtype="float32")
        (source / "tokenizer.model").write_bytes(sentencepiece_bytes)
    assert main(["train", str(write(f'from = "{source}"', "", steps=0))]) == 0
    before, after = load_model(source), load_model(tmp_path / "run" / "model")
    assert before.config == after.config
    assert all(torch.equal(a, after.tensors()[name]) for name, a in before.tensors().items())


@pytest.mark.parametrize(
    ("init", "model", "data", "message"),
    [
        ('upcycle = "{tmp}/nowhere"', "num_local_experts = 4", "", "nowhere: there is no such folder"),
        ('upcycle = "{tmp}/dense"', "", "", "needs num_local_experts"),
        ('upcycle = "{tmp}/dense"', "num_local_experts = 4\nhidden_size = 64", "", "hidden_size is 64 and the dense"),
        ('upcycle = "{tmp}/dense"', "num_local_experts = 4\nnum_experts_per_tok = 1", "", "router gets no gradient"),
        ('upcycle = "{tmp}/dense"', "num_local_experts = 4", "tokenizer = { vocab_size = 300 }", "is to be trained"),
        ('upcycle = "{tmp}/dense"\ngranularity = 2', "num_local_experts = 4", "", "method is 'copy'; use 'split'"),
        ('upcycle = "{tmp}/dense"\nmethod = "spilt"', "num_local_experts = 4", "", "did you mean 'split'"),
        ('upcycle = "{tmp}/dense"\nshared = "first"', "num_local_experts = 4", "", "has shared, but upcycle names one"),
        ('method = "drop"', "", "", "has method, but there is no upcycle"),
        ('upcycle = "{tmp}/dense"\nfrom = "{tmp}/dense"', "", "", "has both from and upcycle"),
        ('from = "{tmp}/dense"\ninduction = true', "", "", "induction is for random weights"),
        ('from = "{tmp}/dense"', "num_local_experts = 4", "", "num_local_experts is 4 and .* has None"),
        ('upcycle = ["{tmp}/dense", "{tmp}/dense"]\nprompts = [["a"]]', "", "", "prompts has 1 groups for 2 models"),
        ('upcycle = ["{tmp}/dense", "{tmp}/dense"]\nprompts = [["a"], []]', "", "", "an empty group"),
        ('upcycle = []', "", "", "expected a path or an array of paths|steps is 0"),
    ],
)  # fmt: skip
def test_bad_recipes(
    init: str, model: str, data: str, message: str, dense: Path, write: Recipe, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = write(init.replace("{tmp}", str(tmp_path)), model, data=data, steps=0)
    assert main(["train", str(path)]) == 2
    import re

    assert re.search(message, capsys.readouterr().err.replace("\n", " "))


def test_a_tokenizer_of_another_size_is_refused(
    dense: Path, write: Recipe, tmp_path: Path, mistral_files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "v3").mkdir()
    (tmp_path / "v3" / "tokenizer.model.v3").write_bytes(mistral_files["v3"].read_bytes())
    path = write(f'upcycle = "{dense}"', data=f'tokenizer = "{tmp_path}/v3"')
    assert main(["train", str(path)]) == 2
    assert "has 32768 pieces and" in capsys.readouterr().err

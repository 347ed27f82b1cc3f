import io
import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from coterie.api import load
from coterie.checkpoint.huggingface import save_huggingface
from coterie.cli.main import main
from coterie.model import Transformer


class FakeStdin(io.TextIOWrapper):
    """stdin as a pipe with these bytes."""

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data), encoding="utf-8")


def run(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    *args: str,
    monkeypatch: pytest.MonkeyPatch | None = None,
    stdin: bytes = b"",
) -> tuple[int, str, str]:
    if monkeypatch is not None:
        monkeypatch.setattr(sys, "stdin", FakeStdin(stdin))
    code = main(["generate", "-m", str(folder), *args])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_stdout_gets_the_continuation_and_nothing_else(capsys: pytest.CaptureFixture[str], tiny_folder: Path) -> None:
    code, out, err = run(capsys, tiny_folder, "Il était", "--max-tokens", "8")
    assert code == 0 and out == load(tiny_folder).generate("Il était", max_tokens=8).text + "\n"
    assert "8 written" in err and err.count("\n") == 1


def test_file_stdin_and_argument_are_the_same(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("Es war einmal\n", encoding="utf-8")
    options = ("--max-tokens", "5")
    given = run(capsys, tiny_folder, "Es war einmal", *options)[1]
    assert run(capsys, tiny_folder, "--file", str(file), *options)[1] == given
    assert run(capsys, tiny_folder, *options, monkeypatch=monkeypatch, stdin=b"Es war einmal\n")[1] == given


def test_flags_and_settings_reach_the_sampler(capsys: pytest.CaptureFixture[str], tiny_folder: Path) -> None:
    args = (
        "The",
        "--max-tokens",
        "9",
        "-t",
        "0.9",
        "--seed",
        "4",
        "--set",
        "top_p=0.8",
        "--set",
        'logit_bias={"7": -3}',
    )
    expected = (
        load(tiny_folder).generate("The", max_tokens=9, temperature=0.9, seed=4, top_p=0.8, logit_bias={7: -3}).text
    )
    assert run(capsys, tiny_folder, *args)[1] == expected + "\n"


def test_settings_that_the_modes_also_make(capsys: pytest.CaptureFixture[str], tiny_folder: Path) -> None:
    """`--set routing=true` was given twice to the sampler, and `logprobs=null` missed in the document."""
    settings = ("--set", "routing=true", "--set", "logprobs=null", "--max-tokens", "2")
    for mode in ("--json", "--routing"):
        code, out, _ = run(capsys, tiny_folder, "The", mode, *settings)
        assert code == 0 and out
    document = json.loads(run(capsys, tiny_folder, "The", "--json", *settings)[1])
    assert len(document["tokens"]) == len(document["routing"]["experts"]) == 2
    assert "logprob" not in document["tokens"][0]


@pytest.mark.parametrize("mode", [(), ("--json",), ("--routing",), ("-n", "2")])
def test_parameters_that_generate_has_no_names_for(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, mode: tuple[str, ...]
) -> None:
    settings = ("-t", "1", "--set", "typical_p=0.9", "--set", "min_tokens=2", "--max-tokens", "3")
    assert run(capsys, tiny_folder, "The", *mode, *settings)[0] == 0


def test_a_wrong_setting_is_said_before_the_model_is_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for args, said in ((("a", "-t", "nan"), "temperature is nan"), (("",), "the prompt is empty")):
        code, _, err = run(capsys, Path("/nowhere/at/all"), *args)
        assert code == 2 and said in err


def test_samples(capsys: pytest.CaptureFixture[str], tiny_folder: Path) -> None:
    out = run(capsys, tiny_folder, "The", "-n", "2", "-t", "1", "--seed", "1", "--max-tokens", "3")[1]
    assert out.startswith("--- sample 1 ---\n") and "--- sample 2 ---\n" in out


def test_json_is_one_document(capsys: pytest.CaptureFixture[str], tiny_folder: Path) -> None:
    code, out, _ = run(capsys, tiny_folder, "Il était", "--json", "--max-tokens", "6", "--set", "logprobs=2", "-n", "2")
    document = json.loads(out)
    assert code == 0 and document["prompt"] == "Il était" and document["usage"]["completion_tokens"] == 6
    assert "".join(t["text"] for t in document["tokens"]) == document["text"]
    assert all(t["logprob"] <= 0 and len(t["top"]) == 2 and t["piece"] for t in document["tokens"])
    assert len(document["routing"]["experts"]) == len(document["routing"]["weights"]) == 6
    assert len(document["others"]) == 1 and document["others"][0]["text"] == document["text"]
    assert document["prompt_tokens"][0] == {"id": 1, "piece": "<s>", "text": ""}


def test_json_of_a_model_with_more_rows_than_its_tokenizer_has_tokens(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    make_model: Callable[..., Transformer],
    sentencepiece_bytes: bytes,
) -> None:
    """All was written, and then the piece of such an id was an error."""
    model = make_model(vocab_size=384)
    save_huggingface(tmp_path / "padded", model.config, model.tensors(), dtype="float32")
    (tmp_path / "padded" / "tokenizer.model").write_bytes(sentencepiece_bytes)
    code, out, _ = run(
        capsys, tmp_path / "padded", "a", "--json", "--max-tokens", "2", "--set", 'logit_bias={"380": 100}'
    )
    document = json.loads(out)
    assert code == 0 and [(t["id"], t["piece"], t["text"]) for t in document["tokens"]] == [(380, "", "")] * 2


@pytest.mark.parametrize("args", [("The king", "--routing"), ("--routing", "The king"), ("The king", "--routing", "1")])
def test_routing_in_a_pipe_is_a_table(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, args: tuple[str, ...]
) -> None:
    code, out, _ = run(capsys, tiny_folder, *args, "--max-tokens", "4")
    lm = load(tiny_folder)
    ids = [*lm.encode("The king"), *lm.generate("The king", max_tokens=4).token_ids]
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and len(rows) == len(ids)
    assert [int(r[1].split(":")[0]) for r in rows] == lm.route(ids).experts[:, 1, 0].tolist()


def test_routing_in_colour(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = run(capsys, tiny_folder, "The king", "--routing", "2", "--max-tokens", "4")[1]
    assert "\x1b[" in out and "layer 2, first expert:" in out


def test_the_picture(capsys: pytest.CaptureFixture[str], tiny_folder: Path, tmp_path: Path) -> None:
    code, out, _ = run(capsys, tiny_folder, "The <king>", "--svg", str(tmp_path / "a.svg"), "--max-tokens", "4")
    assert code == 0 and out == load(tiny_folder).generate("The <king>", max_tokens=4).text + "\n"
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert root.tag.endswith("svg") and "<king>" in "".join("".join(root.itertext()).split())


def test_too_long_a_prompt_is_refused_before_the_weights_are_read(
    capsys: pytest.CaptureFixture[str], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coterie.checkpoint import load as module

    def fill(*_: object) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(module, "fill", fill)
    code, _, err = run(capsys, tiny_folder, "a" * 1000)
    assert code == 2 and "but the model's context is 256" in err


@pytest.mark.parametrize(
    ("args", "stdin", "said"),
    [
        (("",), b"", "the prompt is empty"),
        ((), b"", "the prompt is empty"),
        ((), b"ab\xff", "stdin is not UTF-8: byte 2 is 0xff"),
        (("a\udcff",), b"", "not valid UTF-8"),
        (("a", "--temperature", "nan"), b"", "temperature is nan"),
        (("a", "--max-tokens", "-1"), b"", "max_tokens is -1"),
        (("a", "--max-tokens", "5000"), b"", "make 5002, but the model's context is 256"),
        (("a" * 1000,), b"", "but the model's context is 256: shorten the prompt"),
        (("a", "--set", "top_q=1"), b"", "did you mean 'top_p'"),
        (("a", "--set", "top_p"), b"", "expected NAME=VALUE"),
        (("a", "--routing", "9", "--max-tokens", "4"), b"", "expected a number from 0 to 2"),
        (("a", "--file", "x"), b"", "give one of the two"),
        (("a", "--json", "--svg", "x.svg"), b"", "--json prints a document and draws nothing"),
        (("--file", "/nowhere/x"), b"", "No such file"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(
    capsys: pytest.CaptureFixture[str],
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    stdin: bytes,
    said: str,
) -> None:
    code, out, err = run(capsys, tiny_folder, *args, monkeypatch=monkeypatch, stdin=stdin)
    assert code == 2 and out == "" and said in err
    assert err.startswith("coterie: ") and err.count("\n") == 1

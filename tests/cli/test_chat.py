import io
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest

from coterie.api import Delta, LanguageModel, load
from coterie.cli.chat_session import Session
from coterie.cli.main import main
from coterie.errors import RequestError


@pytest.fixture(scope="module")
def lm(tiny_folder: Path) -> LanguageModel:
    return load(tiny_folder)


def talk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, lines: str, *args: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    code = main(["chat", str(folder), "--max-tokens", "5", *args])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_every_line_of_a_pipe_is_a_turn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, lm: LanguageModel
) -> None:
    code, out, err = talk(capsys, monkeypatch, tiny_folder, "The king\nEs war\n")
    first = lm.generate("The king", max_tokens=5).text
    second = lm.generate(f"The king\n{first}\nEs war", max_tokens=5).text
    assert code == 0 and out == f"{first}\n{second}\n"
    assert "not tuned for chat" in err


def test_a_turn_of_several_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, lm: LanguageModel
) -> None:
    expected = lm.generate("one\ntwo", max_tokens=5).text + "\n"
    for lines in ('"""\none\ntwo\n"""\n', "one\\\ntwo\n", '"""\none\ntwo'):
        assert talk(capsys, monkeypatch, tiny_folder, lines)[1] == expected


def test_a_chat_form(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, lm: LanguageModel
) -> None:
    _, out, err = talk(
        capsys, monkeypatch, tiny_folder, "Hello\n", "--chat-form", "mistral-v1", "--system", "Be brief."
    )
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert out == lm.chat(messages, chat_form="mistral-v1", max_tokens=5).text + "\n" and "not tuned" not in err


def test_what_is_wrong_on_the_command_line_is_said_before_the_model_is_looked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for args, said in (
        (("--set", "temprature=1"), "did you mean 'temperature'"),
        (("--set", "n=2"), "n has no use in a chat"),
        (("--chat-form", "chatlm"), "did you mean 'chatml'"),
    ):
        assert main(["chat", "/nowhere", *args]) == 2
        assert said in capsys.readouterr().err


def test_an_error_in_a_pipe_ends_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    code, out, err = talk(capsys, monkeypatch, tiny_folder, "/shwo\nHello\n")
    assert code == 2 and out == "" and "'/show'" not in out and "did you mean 'show'" in err


def test_without_a_tokenizer_it_says_so_before_the_first_turn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = copytree(tiny_folder, tmp_path / "bare")
    (folder / "tokenizer.model").unlink()
    code, out, err = talk(capsys, monkeypatch, folder, "")
    assert code == 2 and out == "" and "has no tokenizer" in err and err.count("\n") == 1


def test_bye_ends_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    assert talk(capsys, monkeypatch, tiny_folder, "/bye\nHello\n")[:2] == (0, "")


def test_undo_clear_and_show(capsys: pytest.CaptureFixture[str], lm: LanguageModel) -> None:
    session = Session(lm, {"max_tokens": 3})
    session.take("one")
    session.take("two")
    session.take("/undo")
    assert [m["content"] for m in session.messages][::2] == ["one"]
    session.take("/system Be kind")
    capsys.readouterr()
    session.take("/show")
    assert "user: one" in (shown := capsys.readouterr().err) and "system: Be kind" in shown and "max_tokens=3" in shown
    session.take("/clear")
    assert session.messages == [] and session.system == "Be kind"
    with pytest.raises(RequestError, match="no turn"):
        session.take("/undo")


def test_settings_are_checked_when_made(lm: LanguageModel) -> None:
    session = Session(lm, {"max_tokens": 3})
    for line in (
        "/set temperature nan",
        "/set temprature 1",
        "/set temprature",
        "/set n 2",
        "/set",
        "/routing 7",
        "/routing x",
    ):
        with pytest.raises(RequestError):
            session.take(line)
    session.take("/set temperature 0.5")
    session.take("/set seed=3")
    assert session._options == {"max_tokens": 3, "temperature": 0.5, "seed": 3}
    session.take("/set temperature")
    assert session._options == {"max_tokens": 3, "seed": 3}
    for line in ("/set stop a=b c", "/set stop=a=b c", "/set stop = a=b c"):
        session.take(line)
        assert session._options == {"max_tokens": 3, "seed": 3, "stop": "a=b c"}
        session.take("/set stop")
    session.take("/set max_tokens 400")
    session.take("/set min_tokens 300")
    with pytest.raises(RequestError, match="min_tokens is 300"):
        session.take("/set max_tokens")  # the default is 256


def test_two_slashes_are_text(capsys: pytest.CaptureFixture[str], lm: LanguageModel) -> None:
    session = Session(lm, {"max_tokens": 1})
    session.take("//usr/bin")
    session.take("   ")
    assert [m["content"] for m in session.messages][::2] == ["/usr/bin"]


def test_routing_on_and_off(capsys: pytest.CaptureFixture[str], lm: LanguageModel) -> None:
    session = Session(lm, {"max_tokens": 3})
    session.take("/routing on")
    session.take("The king")
    assert capsys.readouterr().out.count("\t") == 6
    session.take("/routing off")
    session.take("The king")
    assert "\t" not in capsys.readouterr().out


class InterruptedModel:
    """A fake: Ctrl-C comes after the first piece."""

    name, chat_form = "fake", None

    def stream(self, messages: object, **_: object) -> Iterator[Delta]:
        yield Delta("half an ", [1])
        raise KeyboardInterrupt


def test_ctrl_c_ends_the_answer_and_keeps_what_came(capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(InterruptedModel(), {})  # type: ignore[arg-type]
    session.take("hello")
    assert session.messages[-1] == {"role": "assistant", "content": "half an "}
    assert capsys.readouterr().out == "half an \n"

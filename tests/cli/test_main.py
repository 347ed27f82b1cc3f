"""The group: help without torch, near misses, and every ending with its exit code and one sentence."""

import errno
import os
import signal
import subprocess
import sys
import time
from types import ModuleType

import click
import pytest

from coterie import __version__
from coterie.cli import main as cli
from coterie.errors import CoterieError, RequestError


def run(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coterie", *args]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, **options)  # type: ignore[call-overload,no-any-return]


def install_verb(monkeypatch: pytest.MonkeyPatch, action: object) -> None:
    """A verb `fake` that does `action`."""

    @click.command()
    @click.option("--count", type=int, default=1)
    def command(count: int) -> None:
        action(count)  # type: ignore[operator]

    module = ModuleType("coterie.cli.fake")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "coterie.cli.fake", module)
    monkeypatch.setitem(cli.VERBS, "fake", "A verb of the tests.")


def raising(error: BaseException) -> object:
    def action(count: int) -> None:
        raise error

    return action


def test_help_and_version_import_neither_torch_nor_a_verb() -> None:
    code = (
        "import sys; from coterie.cli.main import main; assert main([%r]) == 0; "
        "bad = {'torch', 'numpy', 'huggingface_hub', 'rich', 'coterie.cli.inspect', 'coterie.api'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    for flag in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code % flag], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_text_with_a_dash_is_told_where_to_go(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "-5 + 3"]) == 2
    assert "there is no option '-5'; a text that begins with a dash goes after --" in capsys.readouterr().err
    assert cli.main(["generate", "--sede", "3", "x"]) == 2
    assert "'--sede'; did you mean '--seed'? (" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs wait4")
def test_help_takes_less_than_150_ms_of_processor_time() -> None:
    times = []
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-m", "coterie", "--help"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = status
        assert status == 0
        times.append(usage.ru_utime + usage.ru_stime)
    assert min(times) < 0.150


def test_help_lists_every_verb_and_version_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in cli.VERBS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"coterie {__version__}\n"


def test_help_of_no_verb_imports_torch() -> None:
    code = (
        "import sys; from coterie.cli import main as cli\n"
        "for verb in cli.VERBS:\n"
        "    cli.main([verb, '--help']); assert 'torch' not in sys.modules, verb"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_exists_has_an_example_and_takes_debug(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.count(f"coterie {verb}") >= 2  # the usage line is one
    assert "--debug" in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["genrate"], ["'genrate' is not a verb", "did you mean 'generate'?", "coterie --help"]),
        (["--verson"], ["'--verson'", "did you mean '--version'?"]),
        (["fake", "--cuont", "2"], ["fake: ", "'--cuont'", "did you mean '--count'?", "coterie fake --help"]),
        (["fake", "--count", "two"], ["fake: ", "'--count'", "'two'"]),
        (["fake", "extra"], ["fake: ", "extra"]),
    ],
)
def test_a_mistyped_command_line_is_one_sentence_and_exit_2(
    args: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_verb(monkeypatch, lambda count: None)
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("coterie: ")
    assert all(word in err for word in words), err


def test_no_verb_shows_the_help_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Verbs:" in err


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (RequestError("temperature is nan, expected a number from 0 up"), 2, "coterie: temperature is nan"),
        (CoterieError("ü"), 2, "coterie: ü\n"),
        (KeyboardInterrupt(), 130, "coterie: interrupted\n"),
        (click.Abort(), 130, "coterie: interrupted\n"),
        (EOFError(), 130, "coterie: interrupted\n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.txt"), 2, "coterie: x.txt: No such file"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "coterie: No space left on device\n"),
        (MemoryError(), 2, "coterie: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "coterie: out of memory: Default"),
        (
            AssertionError("T == 3"),
            1,
            "coterie: a fault of coterie's own: AssertionError: T == 3; run it again with --debug",
        ),
        (
            ModuleNotFoundError("No module named 'xyz'", name="xyz"),
            2,
            "coterie: the Python package xyz is not installed",
        ),
    ],
)
def test_each_ending_has_its_code_and_no_traceback(
    error: BaseException, code: int, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_verb(monkeypatch, raising(error))
    assert cli.main(["fake"]) == code
    err = capsys.readouterr().err
    assert err.startswith(sentence) and "Traceback" not in err and err.count("\n") == 1


@pytest.mark.parametrize("args", [["--debug", "fake"], ["fake", "--debug"]])
def test_debug_before_or_after_the_verb_shows_the_traceback(
    args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_verb(monkeypatch, raising(RequestError("no")))
    assert cli.main(args) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("coterie: no\n")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    shell = f"{sys.executable} -m coterie --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.endswith("\n0\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_on_stdout_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "coterie", "--help"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and done.stderr == "coterie: No space left on device\n"


def test_output_is_utf8_whatever_the_locale() -> None:
    done = run("frère", env={**os.environ, "PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C"})
    assert done.returncode == 2 and "'frère' is not a verb" in done.stderr


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "coterie: interrupted\n"), (signal.SIGTERM, 143, ""), (signal.SIGHUP, 129, "")],
)
def test_a_verb_that_is_stopped_cleans_up(number: signal.Signals, code: int, said: str) -> None:
    program = (
        "import signal\n"  # what runs the tests may ignore signals (nohup does), and children inherit that
        "for s in (signal.SIGTERM, signal.SIGHUP): signal.signal(s, signal.SIG_DFL)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys, time, types, click; from coterie.cli import main as cli\n"
        "m = types.ModuleType('coterie.cli.fake'); sys.modules['coterie.cli.fake'] = m; cli.VERBS['fake'] = ''\n"
        "m.command = click.Command('fake', callback=lambda: fake())\n"
        "def fake():\n"
        "    try: print('ready', flush=True); time.sleep(60)\n"
        "    finally: print('clean', flush=True)\n"
        "sys.exit(cli.main(['fake']))"
    )
    command, pipe = [sys.executable, "-c", program], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        time.sleep(0.05)
        child.send_signal(number)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (code, "clean\n", said)


def test_signal_handlers_are_as_before_when_main_returns(capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert cli.main(["--version"]) == 0
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before

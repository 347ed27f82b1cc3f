"""The launcher, with small programs as ranks; `test_ranks.py` starts real training."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from coterie.train.launch import LOST, as_rank, is_rank, launch


def script(text: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text)]


def test_every_rank_runs_and_only_rank_0_is_heard(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    program = f"""
        import os, sys
        rank, ranks = os.environ["COTERIE_RANK"], os.environ["COTERIE_RANKS"]
        print("out of", rank); print("err of", rank, file=sys.stderr)
        open({str(tmp_path)!r} + "/" + rank, "w").write(ranks + " " + os.path.dirname(os.environ["COTERIE_STORE"]))
    """
    assert launch(2, script(program)) == 0
    said = capfd.readouterr()
    assert said.out == "out of 0\n" and said.err == "err of 0\n"
    (n0, folder0), (n1, folder1) = ((tmp_path / r).read_text().split() for r in "01")
    assert n0 == n1 == "2" and folder0 == folder1 and not Path(folder0).exists()


def test_a_rank_that_fails_ends_the_run_with_its_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    """Rank 0 would wait for ever; what rank 1 said before its last sentence is not repeated."""
    program = """
        import os, sys, time
        if os.environ["COTERIE_RANK"] == "1":
            print("tokenising", file=sys.stderr)
            sys.exit(print("coterie: the text is gone", file=sys.stderr) or 2)
        time.sleep(0.5)
        sys.exit(75)
    """
    assert launch(2, script(program)) == 2
    assert capfd.readouterr().err == "coterie: rank 1: the text is gone\n"


def test_a_killed_rank_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    program = """
        import os, signal, sys, time
        if os.environ["COTERIE_RANK"] == "1": os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.5); sys.exit(75)
    """
    assert launch(2, script(program)) == 1
    err = capfd.readouterr().err
    assert err.startswith("coterie: rank 1 was ended by SIGKILL") and err.count("\n") == 1


def test_a_rank_that_does_not_notice_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.train.launch._GRACE", 0.3)
    program = 'import os, sys, time\nif os.environ["COTERIE_RANK"] == "0": sys.exit(3)\ntime.sleep(60)'
    started = time.monotonic()
    assert launch(2, script(program)) == 3
    assert time.monotonic() - started < 20


def test_ctrl_c_reaches_every_rank_once(tmp_path: Path) -> None:
    """Each says goodbye in its own time; the launcher waits for them."""
    program = f"""
        import os, time
        rank = os.environ["COTERIE_RANK"]
        try:
            open({str(tmp_path)!r} + "/ready-" + rank, "w"); time.sleep(60)
        except KeyboardInterrupt:
            time.sleep(0.3)
            open({str(tmp_path)!r} + "/saved-" + rank, "a").write("x")
            raise SystemExit(130)
    """

    def interrupt() -> None:
        while not all((tmp_path / f"ready-{r}").exists() for r in range(2)):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert launch(2, script(program)) == 130
    assert [(tmp_path / f"saved-{r}").read_text() for r in range(2)] == ["x", "x"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ranks_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    rank = f"""
        import os, time
        from coterie.train.launch import as_rank
        with as_rank():
            open({str(tmp_path)!r} + "/" + os.environ["COTERIE_RANK"], "w").write(str(os.getpid()))
            time.sleep(60)
    """
    starter = f"from coterie.train.launch import launch; launch(2, {script(rank)!r})"
    process = subprocess.Popen([sys.executable, "-c", starter])
    written = [tmp_path / "0", tmp_path / "1"]
    while not all(path.exists() and path.read_text() for path in written):
        time.sleep(0.05)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(_is_alive(int(path.read_text())) for path in written):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_lost_neighbour_is_told_from_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.train.launch._end_with_parent", lambda: None)
    env = {"COTERIE_RANK": "0"}
    assert is_rank(env) and not is_rank({})
    with pytest.raises(SystemExit) as ended, as_rank(env):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242")
    assert ended.value.code == LOST
    with pytest.raises(RuntimeError, match="shape"), as_rank(env):
        raise RuntimeError("shape mismatch")
    with pytest.raises(RuntimeError, match="gloo"), as_rank({}):
        raise RuntimeError("gloo: outside of a launched rank it is told as it is")

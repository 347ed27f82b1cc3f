"""The README's commands run, its Python runs, its links lead somewhere, and its pictures are what the tool makes."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """The lines of ```sh blocks; ```bash blocks need a network, a big model or an hour."""
    return [line for block in blocks("sh") for line in block.splitlines() if line.strip()]


def test_there_are_commands_and_python_to_run() -> None:
    assert len(commands()) >= 5 and len(blocks("python")) == 1


@pytest.mark.parametrize("line", commands())
def test_command_runs(line: str, tmp_path: Path) -> None:
    program, *words = shlex.split(line, comments=True)
    assert program == "coterie"
    done = subprocess.run(
        [sys.executable, "-m", "coterie", *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_python_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "torch.Size([" in done.stdout


@pytest.mark.parametrize(
    "name", [w.split()[1] for b in blocks("bash") for w in b.splitlines() if w.startswith("coterie ")]
)
def test_verbs_that_are_not_run_exist(name: str) -> None:
    from coterie.cli.main import VERBS

    assert name in VERBS


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]
    assert not missing


def test_picture_shows_a_text_by_expert() -> None:
    picture = (ROOT / "docs" / "routing.svg").read_text(encoding="utf-8")
    assert picture.startswith("<svg") and "expert" in picture

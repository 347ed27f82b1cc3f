"""Make `.venv` ready for `make demo` ("run") or `make test` ("dev"); standard library only, Python 3.11 or later.

A torch that this Python already has is used, not downloaded again: its site-packages are lent to `.venv` through a
.pth file, which also works where this Python lives in a virtual environment (`--system-site-packages` would lend those
of the Python below it). What is to be downloaded is said first. A stamp makes the second run immediate.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CSRC = ROOT / "csrc"
PYTHON = VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
MEGABYTES = {  # of wheels, with what they draw in that nothing else does; Linux, x86-64
    "torch": 200,
    "numpy": 17,
    "transformers": 15,
    "triton": 188,
    "lm-eval": 85,
    "mypy": 14,
    "matplotlib": 24,  # with contourpy, fonttools, pillow, kiwisolver
    "ruff": 12,
    "mistral-common": 16,
    "pyarrow": 48,
    "tensorboard": 16,
    "zstandard": 6,
    "huggingface-hub": 8,
    "llguidance": 3,
    "mistralai": 4,
    "playwright": 47,
    "pydantic": 3,
    "schemathesis": 8,  # with jsonschema-rs
}


def main(kind: str) -> int:
    requirements, stamp_text = read_requirements(kind)
    stamp = VENV / f"ready-{kind}"
    if PYTHON.exists() and stamp.exists() and stamp.read_text() == stamp_text:
        return 0
    is_inside = Path(sys.prefix).resolve() == VENV.resolve()  # `.venv` is active: it lends itself nothing
    lent = read_lent() if is_inside else lent_folders()
    found = {**installed(lent), **installed(own_folders())}
    missing = [name for name, least in requirements.items() if not at_least(found.get(name), least)]
    announce(missing, found.get("torch"), is_lent=bool(lent))
    if not is_inside and not is_usable():
        create()
    (own_folders()[0] / "lent.pth").write_text("".join(f"{folder}\n" for folder in lent))
    if missing:
        pip_install(kind, requirements, missing)
    if not install_ourselves():
        return 1
    stamp.write_text(stamp_text)
    return 0


def read_requirements(kind: str) -> tuple[dict[str, str], str]:
    """Least versions by normalized name, and a text that changes when anything here does."""
    source, pins = (ROOT / "pyproject.toml").read_text("utf-8"), (ROOT / "constraints.txt").read_text("utf-8")
    project = tomllib.loads(source)["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + extras["plot"] + (extras["dev"] if kind == "dev" else [])
    here = f"sys_platform == '{sys.platform}'"  # the one marker that is used
    wanted = (line.partition(";")[0] for line in lines if line.partition(";")[2].strip() in ("", here))
    pairs = (line.strip().partition(">=")[::2] for line in wanted)
    requirements = {normal(name): least for name, least in pairs}
    native = [(ROOT / "CMakeLists.txt").read_text("utf-8"), *(p.read_text("utf-8") for p in sorted(CSRC.iterdir()))]
    state = "\0".join([source, pins, sys.version, Path(__file__).read_text("utf-8"), compiler(), *native])
    return requirements, hashlib.sha256(state.encode()).hexdigest()


def compiler() -> str:
    """Where a C++ compiler is, so that installing one makes the next run build the kernels; or nothing."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), "")


def lent_folders() -> list[str]:
    """The site-packages of this Python, if it has a torch recent enough; else none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    least = next(d for d in project["dependencies"] if d.startswith("torch>=")).partition(">=")[2]
    folders = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    return folders if at_least(installed(folders).get("torch"), least) else []


def read_lent() -> list[str]:
    path = own_folders()[0] / "lent.pth"
    return path.read_text("utf-8").splitlines() if path.exists() else []


def is_usable() -> bool:
    """Whether `.venv` is there, whole, and of this Python's version."""
    settings = VENV / "pyvenv.cfg"
    text = settings.read_text("utf-8") if settings.exists() else ""
    version = re.search(r"^version(?:_info)? = (\d+\.\d+)", text, re.MULTILINE)
    return PYTHON.exists() and version is not None and version[1] == f"{sys.version_info[0]}.{sys.version_info[1]}"


def own_folders() -> list[Path]:
    paths = sysconfig.get_paths("venv", vars={"base": str(VENV), "platbase": str(VENV)})
    return [Path(p) for p in dict.fromkeys([paths["purelib"], paths["platlib"]])]


def installed(folders: list) -> dict[str, str]:
    found: dict[str, str] = {}
    for dist in metadata.distributions(path=[str(f) for f in folders]):
        if dist.metadata["Name"]:
            found.setdefault(normal(dist.metadata["Name"]), dist.version)
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def at_least(version: str | None, least: str) -> bool:
    if version is None:
        return False
    have, need = ([int(n) for n in re.findall(r"\d+", v.partition("+")[0])[:3]] for v in (version, least))
    return have + [0] * (3 - len(have)) >= need + [0] * (3 - len(need))


def announce(missing: list[str], torch: str | None, *, is_lent: bool) -> None:
    if is_lent and "torch" not in missing:
        say(f"torch {torch} is already there ({sys.executable}) and will be used")
    if not missing:
        say("nothing has to be downloaded")
        return
    size = sum(MEGABYTES.get(name, 3) for name in missing)
    say(f"setting up {VENV}: about {size} MB will be downloaded with pip ({', '.join(missing)})")
    if "torch" in missing and sys.platform == "linux":
        say("torch from PyPI comes with CUDA and is about 3 GB; the README says how to have the CPU build, 200 MB")


def create() -> None:
    say(f"making {VENV} with Python {sys.version.split()[0]}")
    try:
        venv.EnvBuilder(with_pip=True, clear=True, symlinks=sys.platform != "win32").create(VENV)
    except subprocess.CalledProcessError:
        sys.exit("make: this Python has no ensurepip (Debian, Ubuntu: apt install python3-venv); then run this again")


def pip_install(kind: str, requirements: dict[str, str], missing: list[str]) -> None:
    """Install what is missing, at the versions of constraints.txt; what is lent keeps the version it has."""
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    kept = [pin for pin in pins if normal(pin.partition("==")[0]) in missing]
    constraints = VENV / "constraints.txt"
    constraints.write_text("\n".join(kept) + "\n")
    wanted = [f"{name}>={requirements[name]}" for name in missing]
    if pip("-c", str(constraints), *wanted) != 0:
        sys.exit(f"make: pip could not install {', '.join(missing)}; its message is above (is there a network?)")


def install_ourselves() -> bool:
    """An editable coterie with its command and native kernels; where pip cannot build, src/ linked by hand."""
    say("building coterie and its native kernels, about a minute; a machine without a C++ compiler does without them")
    if pip("--no-deps", "--editable", str(ROOT), is_quiet=True) == 0:
        return True
    say(
        "pip cannot build (no network? to see why: .venv/bin/pip install --no-deps -e .): linking src/, without kernels"
    )
    (own_folders()[0] / "coterie-src.pth").write_text(f"{ROOT / 'src'}\n")
    script = VENV / "bin/coterie"
    script.write_text(f"#!{PYTHON}\nimport sys\nfrom coterie.cli.main import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return True


def pip(*arguments: str, is_quiet: bool = False) -> int:
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, stderr=subprocess.DEVNULL if is_quiet else None).returncode


def say(sentence: str) -> None:
    print(f"make: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

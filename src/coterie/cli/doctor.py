"""`coterie doctor`: what this machine has, what is wrong with it for our purpose, and how to mend it.

It runs where nothing else does: a package that is missing or broken is a finding, not a failure. Values of environment
variables that may be secret are never shown.
"""

import importlib
import importlib.util
import os
import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from coterie import __version__, device
from coterie.checkpoint.hub import DEMO
from coterie.cli.output import human_bytes, print_json, print_table, printable

__all__ = ["command", "examine", "find_problems", "kernels_text", "redacted_environment"]

_PACKAGES = {  # distribution: module
    "torch": "torch",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "sentencepiece": "sentencepiece",
    "tokenizers": "tokenizers",
    "mistral-common": "mistral_common",
    "huggingface-hub": "huggingface_hub",
    "click": "click",
    "rich": "rich",
}
_PREFIXES = ("COTERIE_", "HF_", "TRANSFORMERS_", "OMP_", "MKL_", "TORCH", "PYTORCH_", "CUDA_", "NVIDIA_")
_NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
_LITTLE_MEMORY = 1 << 30
_LITTLE_DISK = 10 * 10**9


@click.command(epilog="\b\nExamples:\n  coterie doctor\n  coterie doctor --json > report.json")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(as_json: bool) -> None:
    """Say what this machine has, what is wrong, and how to mend it. Secrets are not shown."""
    found = examine()
    found["problems"] = find_problems(found)
    if as_json:
        print_json(found)
    else:
        _print(found)


def examine() -> dict[str, Any]:
    """Everything there is to know, as JSON values; sizes in bytes."""
    return {
        "coterie": __version__,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": platform.platform(),
        "packages": {name: _version(name, module) for name, module in _PACKAGES.items()},
        "cpu": {
            "name": device.cpu_name(),
            "usable": _usable_cpus(),
            "features": device.cpu_features(),
            "bf16": device.has_bf16(),
            "f16": device.has_f16(),
        },
        "gpus": [{"name": name, "total": total, "free": free} for name, total, free in device.gpus()],
        "torch": _examine_torch(),
        "kernels": {**_examine_kernels(), "gpu": "reference (plain torch)"},
        "memory": {"total": device.total_memory(), "available": device.available_memory()},
        "hub": _examine_hub(),
        "demo": {"path": str(DEMO), "there": (DEMO / "config.json").is_file()},
        "environment": redacted_environment(dict(os.environ)),
    }


def redacted_environment(environment: dict[str, str]) -> dict[str, str]:
    """The variables that change what we do; a value that may be secret is replaced by a word."""
    shown = {}
    for name in sorted(environment):
        if name.startswith(_PREFIXES) or name in _NAMES:
            value = re.sub(r"//[^/@\s]*@", "//(hidden)@", environment[name])  # user:password@ of a URL
            shown[name] = "(set, not shown)" if _SECRET.search(name) or "hf_" in value else value
    return shown


def find_problems(found: dict[str, Any]) -> list[dict[str, str]]:
    """What is wrong (`what`) and what to do (`mend`), worst first."""
    problems = [
        (f"the package {name} is missing or broken", f"pip install --upgrade {name}")
        for name, version in found["packages"].items()
        if version is None
    ]
    torch, cpus, hub = found["torch"], found["cpu"]["usable"], found["hub"]
    if torch.get("error"):
        problems.append((f"torch does not import: {torch['error']}", "install torch again, for this Python"))
    else:
        problems += _kernel_problems(found["kernels"])
    if found["gpus"] and not torch.get("error") and not torch["cuda"]:
        what = f"there is a GPU ({found['gpus'][0]['name']}) and torch {torch['version']} cannot use it"
        problems.append((what, "install a CUDA build of torch: https://pytorch.org/get-started/locally"))
    if not torch.get("error") and torch["cuda"] and not torch["triton"]:
        what = "Triton is not installed: a card computes with torch's operations, which are slower"
        problems.append((what, "pip install triton (torch's CUDA builds for Linux bring it)"))
    if not found["demo"]["there"]:
        problems.append(("the model that ships is not in this installation", "install coterie again"))
    if found["memory"]["available"] < _LITTLE_MEMORY:
        what = f"only {human_bytes(found['memory']['available'])} of memory are free"
        problems.append((what, "close other programs, or raise the container's limit"))
    if not torch.get("error") and torch["threads"] > cpus:
        what = f"torch uses {torch['threads']} threads and this process may use {cpus} CPUs"
        problems.append((what, f"export OMP_NUM_THREADS={cpus}"))
    if not found["cpu"]["bf16"] and not found["gpus"]:
        what = "the CPU has no bf16 instructions: bf16 models are computed in float32, with twice the memory"
        problems.append((what, "nothing to mend; a smaller model or a newer CPU"))
    if not hub["writable"]:
        problems.append(
            (f"the Hugging Face cache {hub['cache']} cannot be written", "set HF_HOME to a folder that can")
        )
    elif hub["free"] < _LITTLE_DISK:
        what = f"only {human_bytes(hub['free'])} of disk are free for the Hugging Face cache {hub['cache']}"
        problems.append((what, "make room, or set HF_HOME to a folder on a larger disk"))
    if hub["offline"]:
        problems.append(("HF_HUB_OFFLINE is set: `coterie pull` does nothing", "unset HF_HUB_OFFLINE"))
    return [{"what": what, "mend": mend} for what, mend in problems]


def _kernel_problems(kernels: dict[str, Any]) -> list[tuple[str, str]]:
    again = "install a C++ compiler (Debian, Ubuntu: apt install g++ python3-dev) and install coterie again"
    if kernels["error"]:
        is_choice = "expected one of" in kernels["error"]
        return [(kernels["error"], "unset COTERIE_KERNELS" if is_choice else "install coterie again, for this Python")]
    if kernels["names"] == ["reference"]:
        return [("the native kernels were not built: everything runs, several times slower", again)]
    if kernels["cpu"] == "reference":
        return [
            ("COTERIE_KERNELS asks for plain torch: everything runs, several times slower", "unset COTERIE_KERNELS")
        ]
    return []


def _version(name: str, module: str) -> str | None:
    try:
        return metadata.version(name) if importlib.util.find_spec(module) else None
    except (metadata.PackageNotFoundError, ImportError, ValueError):
        return None


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _examine_torch() -> dict[str, Any]:
    try:
        import torch

        return {
            "version": torch.__version__,
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
            "device": str(device.choose_device()),
            "triton": _version("triton", "triton"),
            "threads": torch.get_num_threads(),
        }
    except Exception as e:  # a broken installation fails in many ways, and each is worth telling
        return {"error": f"{type(e).__name__}: {e}".splitlines()[0]}


def _examine_kernels() -> dict[str, Any]:
    """`cpu`: the instruction set in use, or "reference"; `names`: all that can be chosen, the fastest first."""
    try:
        from coterie.kernels import cpu

        if importlib.util.find_spec("coterie._native"):
            importlib.import_module("coterie._native")  # else its error would be taken for its absence
        return {"cpu": cpu.used(), "names": cpu.names(), "error": None}
    except Exception as e:  # a module for another Python, a name that does not exist, no torch
        return {"cpu": "reference", "names": ["reference"], "error": str(e).splitlines()[0]}


def _examine_hub() -> dict[str, Any]:
    try:
        from huggingface_hub import constants, get_token

        cache, offline, is_logged_in = (
            Path(constants.HF_HUB_CACHE).expanduser(),
            constants.HF_HUB_OFFLINE,
            bool(get_token()),
        )
        endpoint = re.sub(r"//[^/@\s]*@", "//(hidden)@", constants.ENDPOINT)
    except Exception:  # the same
        cache, offline, is_logged_in, endpoint = Path.home() / ".cache/huggingface/hub", False, False, ""
    there = next((p for p in (cache, *cache.parents) if p.exists()), Path("/"))
    return {
        "cache": str(cache),
        "free": shutil.disk_usage(there).free,
        "writable": os.access(there, os.W_OK),
        "endpoint": endpoint,
        "offline": bool(offline),
        "logged_in": is_logged_in,
    }


def kernels_text(kernels: dict[str, Any]) -> str:
    """`avx512bf16 (native; also: avx512vnni, avx2, portable)`"""
    used, others = kernels["cpu"], [name for name in kernels["names"] if name not in (kernels["cpu"], "reference")]
    if used == "reference" and not others:
        return "reference (plain torch): the native kernels were not built" if not kernels["error"] else "reference"
    also = f"; also: {', '.join(others)}" if others else ""
    return f"reference (plain torch{also})" if used == "reference" else f"{used} (native{also})"


def _print(found: dict[str, Any]) -> None:
    torch, hub, memory = found["torch"], found["hub"], found["memory"]
    rows = [
        ("coterie", f"{found['coterie']} on Python {found['python']['version']}, {found['system']}"),
        ("cpu", f"{found['cpu']['name']}, {found['cpu']['usable']} usable: {' '.join(found['cpu']['features'])}"),
        *(("gpu", f"{g['name']}, {human_bytes(g['free'])} free of {human_bytes(g['total'])}") for g in found["gpus"]),
        (
            "torch",
            torch.get("error") or f"{torch['version']}, computes on {torch['device']}, {torch['threads']} threads",
        ),
        ("kernels", kernels_text(found["kernels"])),
        ("memory", f"{human_bytes(memory['available'])} free of {human_bytes(memory['total'])}"),
        ("hub", f"{hub['endpoint']}, {'logged in' if hub['logged_in'] else 'not logged in'}"),
        ("cache", f"{hub['cache']}, {human_bytes(hub['free'])} of disk free"),
        *((name, version or "missing") for name, version in found["packages"].items() if name != "torch"),
        *found["environment"].items(),
    ]
    print_table([(printable(name), printable(f" {text}")) for name, text in rows], indent=0)
    print()
    for problem in found["problems"]:
        print(printable(f"problem: {problem['what']}; {problem['mend']}"))
    if not found["problems"]:
        print("nothing is wrong")

"""What this machine can do: the device, the number type that is fast on it, the memory that is left.

Surprising: a CPU without bf16 instructions runs bf16 products 44-499 times slower than float32, so "auto" means
float32 there; and in a container the limit is the cgroup's, which `MemAvailable` knows nothing of.
torch is imported inside the functions that need it. `root` exists for tests: a folder that stands for `/`.
"""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.errors import RequestError, ResourceError, nearest

if TYPE_CHECKING:
    import torch

__all__ = [
    "DTYPE_NAMES",
    "available_memory",
    "choose_device",
    "choose_dtype",
    "cpu_features",
    "cpu_name",
    "gpus",
    "has_bf16",
    "has_f16",
    "has_fp8",
    "total_memory",
]

DTYPE_NAMES = {
    "float32": "float32",
    "f32": "float32",
    "float16": "float16",
    "f16": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
}
_DEVICE = re.compile(r"cpu(:0)?|cuda(:[0-9]{1,3})?|mps(:0)?")
_ROOT = Path("/")
_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is ARM's name
_F16 = frozenset({"avx512_fp16", "amx_fp16", "asimdhp", "fphp"})
_OF_INTEREST = (
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "sve", "sve2", "i8mm", "bf16"),
)
_UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2^63 where there is no limit


def choose_device(name: str = "auto") -> "torch.device":
    """The device to compute on: "auto" (a CUDA GPU where there is one, else the CPU), "cpu", "cuda", "cuda:1", "mps".

    Raises `RequestError` for a name that is none of these, `ResourceError` for a device that is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not _DEVICE.fullmatch(name):
        known = ("auto", "cpu", "cuda", "mps")
        raise RequestError(f"device {name!r} is unknown, expected auto, cpu, cuda, cuda:N or mps{nearest(name, known)}")
    kind, _, index = name.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ResourceError(
            f"device {name!r} needs a CUDA GPU and torch {torch.__version__} sees none; use cpu or auto"
        )
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ResourceError(f"device {name!r} is not there: torch sees {count} GPU(s), counted from 0")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ResourceError("device 'mps' needs an Apple GPU and torch sees none; use cpu or auto")
    if kind == "cpu":
        return torch.device("cpu")
    return torch.device(name)


def choose_dtype(name: str, file_dtype: str, device: "torch.device | str" = "cpu") -> "torch.dtype":
    """The number type to compute in. `name`: "auto", "float32" ("f32"), "float16" ("f16"), "bfloat16" ("bf16").

    "auto" is the file's type, but float32 where the device has no instructions for it. Raises `RequestError`.
    """
    import torch

    if name == "auto":
        wanted = DTYPE_NAMES.get(file_dtype, "float32")
        is_fast = {"bfloat16": has_bf16, "float16": has_f16}.get(wanted)
        chosen = wanted if is_fast is None or is_fast(device) else "float32"
        return getattr(torch, chosen)  # type: ignore[no-any-return]
    if name not in DTYPE_NAMES:
        known = ("auto", *DTYPE_NAMES)
        raise RequestError(f"dtype {name!r} is unknown, expected one of {', '.join(known)}{nearest(name, known)}")
    return getattr(torch, DTYPE_NAMES[name])  # type: ignore[no-any-return]


def has_bf16(device: "torch.device | str" = "cpu", *, root: Path = _ROOT) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if _kind(device) == "cuda":
        import torch

        return torch.cuda.get_device_capability(device) >= (8, 0)
    return _kind(device) == "cpu" and bool(_BF16 & _cpu_flags(root))


def has_f16(device: "torch.device | str" = "cpu", *, root: Path = _ROOT) -> bool:
    """Whether the device multiplies float16 in hardware."""
    if _kind(device) != "cpu":
        return True
    return bool(_F16 & _cpu_flags(root))


def has_fp8(device: "torch.device") -> bool:
    """Whether kernels on a CUDA GPU read float8: from Ada and Hopper on."""
    import torch

    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)


def cpu_features(*, root: Path = _ROOT) -> list[str]:
    """The instruction sets that matter to a language model, by the operating system's names."""
    flags = _cpu_flags(root)
    return [name for name in _OF_INTEREST if name in flags]


def cpu_name(*, root: Path = _ROOT) -> str:
    """The processor's marketing name, or its architecture where the system does not say."""
    for line in _lines(root / "proc/cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def gpus() -> list[tuple[str, int, int]]:
    """(name, total bytes, free bytes) of each NVIDIA GPU, as nvidia-smi says it: quick, and torch is not needed."""
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.rsplit(",", 2) for line in answer.stdout.splitlines()]
    return [
        (row[0].strip(), int(row[1]) << 20, int(row[2]) << 20)
        for row in rows
        if len(row) == 3 and row[1].strip().isdigit() and row[2].strip().isdigit()
    ]


def total_memory(device: "torch.device | str" = "cpu", *, root: Path = _ROOT) -> int:
    """Bytes this process may use at most: the machine's memory or the container's limit, or the GPU's own."""
    if _kind(device) == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[1])
    return min([_machine_memory(root), *(limit for limit, _ in _cgroups(root))])


def available_memory(device: "torch.device | str" = "cpu", *, root: Path = _ROOT) -> int:
    """Bytes that can be allocated now without swapping: the least of what the system and our control groups leave.

    Of a GPU it is what the driver has left, once torch has given back what it keeps for later.
    """
    if _kind(device) == "cuda":
        import torch

        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    free = _meminfo(root).get("MemAvailable", _machine_memory(root))
    return max(0, min([free, *_address_space(root), *(limit - used for limit, used in _cgroups(root))]))


def _kind(device: "torch.device | str") -> str:
    return str(device).partition(":")[0]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _cpu_flags(root: Path) -> frozenset[str]:
    for line in _lines(root / "proc/cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):  # x86, ARM
            return frozenset(value.split())
    if root == _ROOT and platform.system() == "Darwin":
        return _darwin_flags()
    return frozenset()


def _darwin_flags() -> frozenset[str]:
    asked = {"hw.optional.arm.FEAT_BF16": "bf16", "hw.optional.arm.FEAT_FP16": "asimdhp"}
    found = set()
    for key, flag in asked.items():
        answer = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False)
        if answer.stdout.strip() == "1":
            found.add(flag)
    return frozenset(found)


def _meminfo(root: Path) -> dict[str, int]:
    """`/proc/meminfo` in bytes."""
    found = {}
    for line in _lines(root / "proc/meminfo"):
        name, _, rest = line.partition(":")
        number = rest.split()[:1]
        if number and number[0].isdigit():
            found[name] = int(number[0]) * 1024
    return found


def _machine_memory(root: Path) -> int:
    known = _meminfo(root).get("MemTotal")
    return known if known is not None else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _address_space(root: Path) -> list[int]:
    """Bytes left under `ulimit -v`, where there is such a limit."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = " ".join(_lines(root / "proc/self/statm")).split()[:1]
    if limit == resource.RLIM_INFINITY or not pages:
        return []
    return [limit - int(pages[0]) * resource.getpagesize()]


def _cgroups(root: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes of every memory-limited control group this process is in, version 2 and version 1.

    File pages that can be dropped are charged to a group too; they do not count as used.
    """
    found = []
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, name = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            base, limit, used, droppable = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, used = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            droppable = "total_inactive_file"
        else:
            continue
        here = base / name.lstrip("/")
        for folder in [here, *here.parents]:
            if folder == base or base in folder.parents:
                most, now = _number(folder / limit), _number(folder / used)
                if most is not None and most < _UNLIMITED:
                    found.append((most, max(0, (now or 0) - _statistic(folder / "memory.stat", droppable))))
    return found


def _number(path: Path) -> int | None:
    words = " ".join(_lines(path)).split()
    return int(words[0]) if words and words[0].isdigit() else None


def _statistic(path: Path, name: str) -> int:
    for line in _lines(path):
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0

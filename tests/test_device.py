"""What the machine is said to have, read from made-up `/proc` and `/sys` trees."""

import resource
from pathlib import Path

import pytest
import torch

from coterie import device
from coterie.errors import RequestError, ResourceError

GB = 1 << 30


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = f"MemTotal:       {16 * GB // 1024} kB\nMemFree: 1 kB\nMemAvailable:   {10 * GB // 1024} kB\n"


@pytest.mark.parametrize(
    ("cpuinfo", "bf16", "f16"),
    [
        ("processor: 0\nmodel name\t: X 9\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True, False),
        ("flags : avx2 amx_bf16 amx_tile avx512_fp16", True, True),
        ("flags : avx2 avx512f avx512_vnni", False, False),
        ("Features\t: fp asimd asimdhp bf16 i8mm", True, True),
        ("Features : fp asimd", False, False),
        ("", False, False),
    ],
)
def test_half_types_are_read_off_the_processor_flags(cpuinfo: str, bf16: bool, f16: bool, tmp_path: Path) -> None:
    root = machine(tmp_path, {"proc/cpuinfo": cpuinfo})
    assert device.has_bf16("cpu", root=root) is bf16 and device.has_f16(torch.device("cpu"), root=root) is f16
    assert ("avx512_vnni" in device.cpu_features(root=root)) is ("vnni" in cpuinfo)
    assert device.cpu_name(root=root) == ("X 9" if "X 9" in cpuinfo else device.cpu_name(root=tmp_path / "none"))


def test_memory_without_a_container_is_the_systems(tmp_path: Path) -> None:
    root = machine(tmp_path, {"proc/meminfo": MEMINFO})
    assert device.total_memory(root=root) == 16 * GB and device.available_memory(root=root) == 10 * GB


def test_memory_in_a_container_is_the_least_of_its_groups(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/a.slice"
    root = machine(tmp_path, {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/a.slice/b.scope\n",
        f"{group}/memory.max": str(4 * GB),
        f"{group}/memory.current": str(3 * GB),
        f"{group}/memory.stat": f"anon 5\ninactive_file {GB}\n",  # can be dropped, so it is not used
        f"{group}/b.scope/memory.max": "max\n",
    })  # fmt: skip
    assert device.total_memory(root=root) == 4 * GB and device.available_memory(root=root) == 2 * GB


def test_memory_of_a_version_1_group(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory"
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "5:cpu:/\n4:memory:/x\n"}
    root = machine(tmp_path, {
        **files,
        f"{group}/memory.limit_in_bytes": "9223372036854771712",  # its way to say: no limit
        f"{group}/x/memory.limit_in_bytes": str(2 * GB),
        f"{group}/x/memory.usage_in_bytes": str(3 * GB),
    })  # fmt: skip
    assert device.total_memory(root=root) == 2 * GB and device.available_memory(root=root) == 0


def test_memory_under_ulimit_v_is_what_the_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = resource.getpagesize()
    root = machine(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/statm": "7 5 3 1 0 2 0\n"})
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (100 * page, resource.RLIM_INFINITY))
    assert device.available_memory(root=root) == 93 * page


def test_this_machine_has_some_memory() -> None:
    assert 0 < device.available_memory() <= device.total_memory()


def test_memory_of_a_card_counts_what_torch_keeps_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a model has gone the driver still calls its memory used, and a second one was refused."""
    free = [10]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(90))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[-1], 100))
    assert device.available_memory(torch.device("cuda")) == 90


def test_float8_begins_with_ada(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, has_it in (((8, 0), False), ((8, 9), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert device.has_fp8(torch.device("cuda:0")) is has_it


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:1", "CUDA", "cuda:²"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="expected auto, cpu, cuda"):
        device.choose_device(name)


def test_devices() -> None:
    assert device.choose_device("cpu") == torch.device("cpu")
    assert device.choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ResourceError, match=r"cuda:99"):
        device.choose_device("cuda:99")


def test_auto_is_the_files_type_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_cpu_flags", lambda root: frozenset({"avx512_bf16"}))
    assert device.choose_dtype("auto", "bfloat16", "cpu") is torch.bfloat16
    assert device.choose_dtype("auto", "float16", "cpu") is torch.float32
    monkeypatch.setattr(device, "_cpu_flags", lambda root: frozenset({"avx2"}))
    assert device.choose_dtype("auto", "bfloat16", "cpu") is torch.float32
    assert device.choose_dtype("bf16", "float32", "cpu") is torch.bfloat16  # asked for is asked for
    assert device.choose_dtype("auto", "float32", "cpu") is torch.float32
    with pytest.raises(RequestError, match="did you mean 'bfloat16'"):
        device.choose_dtype("bfloat61", "float32", "cpu")

"""What the tests of the native kernels share: every instruction set, also an emulated one; random packed matrices."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from coterie.kernels import cpu, cpu_choice
from coterie.quant.formats import FORMATS, Format
from coterie.quant.ggml_blocks import GGML_TYPES
from coterie.quant.mapped import MappedMatrix
from coterie.quant.tensor import Codes, PackedTensor, pack

EVERY_FORMAT = {  # all that have a product, and the sizes of group that are not the usual one
    **FORMATS,
    "int8_64": Format(8, group_units=2),
    "int6_offset": Format(6, scales="f16_offset"),
    "int5_offset_64": Format(5, group_units=2, scales="f16_offset"),
    "int4_64": Format(4, group_units=2),
    "int4_offset_64": Format(4, group_units=2, scales="f16_offset"),
    "int3_symmetric": Format(3),
    "int3_offset": Format(3, scales="f16_offset"),
}
NATIVE = [name for name in cpu.names() if name != "reference"]
EMULATED = [] if "neon" in NATIVE else ["neon"]


def load_emulator() -> ModuleType:
    path = Path(__file__).with_name("emulator.py")
    spec = importlib.util.spec_from_file_location("emulator", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def emulated(pytestconfig: pytest.Config) -> Iterator[Any]:
    """The NEON kernels in an emulator; skipped where there is no cross compiler or no qemu."""
    emulator = load_emulator()
    if (what := emulator.missing()) is not None:
        pytest.skip(what)
    running = emulator.Emulator(emulator.build(Path(pytestconfig.cache.mkdir("neon"))))
    yield running
    running.close()


@pytest.fixture(params=[*NATIVE, *EMULATED])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn, in use."""
    name: str = request.param
    if name not in EMULATED:
        with cpu.use(name), torch.inference_mode():
            yield name
        return
    state = cpu_choice.state()
    before = state.module, state.name, state.n_threads
    state.module, state.name, state.n_threads = request.getfixturevalue("emulated"), name, 0
    try:
        with torch.inference_mode():
            yield name
    finally:
        state.module, state.name, state.n_threads = before


@pytest.fixture(params=EVERY_FORMAT)
def format(request: pytest.FixtureRequest) -> Format:
    return EVERY_FORMAT[request.param]


@pytest.fixture(scope="session")
def random_packed() -> Callable[..., PackedTensor]:
    """(format, N, K, seed) -> a packed matrix of weights about 0, every value and scale used."""

    def make(format: Format, N: int, K: int, seed: int = 0) -> PackedTensor:
        g = torch.Generator().manual_seed(seed)
        u = torch.randint(0, 1 << format.bits, (N, K), dtype=torch.uint8, generator=g)

        def f16(n: int, low: float, high: float) -> Tensor:
            return (low + (high - low) * torch.rand(N, n, generator=g)).half()

        def integers(n: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
            return torch.randint(low, high, (N, n), generator=g).to(dtype)

        step = 1 / (1 << format.bits)
        if not format.is_super:
            G = -(-K // format.group)
            offset = f16(G, -1, 0) if format.scales == "f16_offset" else None
            return pack(format, Codes(u, f16(G, 0.1 * step, 2 * step), offset))
        B, U = -(-K // 256), K // format.unit
        if format.scales == "super":
            return pack(format, Codes(u, f16(B, 0, step / 40), None, integers(U, -128, 128, torch.int8)))
        top = 16 if format.scales == "super_nibble" else 256
        sc, m = integers(U, 0, top, torch.uint8), integers(U, 0, top, torch.uint8)
        return pack(format, Codes(u, f16(B, 0, 2 * step / top), f16(B, 0, 2 / top), sc, m))

    return make


@pytest.fixture(scope="session")
def random_mapped() -> Callable[..., MappedMatrix]:
    """(kind, N, K, half, head_rows, seed) -> a matrix of GGUF blocks: random bytes, small f16 scales."""

    def rows(kind: str, N: int, K: int, seed: int) -> np.ndarray:
        t = GGML_TYPES[kind]
        random = np.random.default_rng(seed)
        raw = random.integers(0, 256, (N, K // t.size, t.nbytes), np.uint8)
        for at in {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(
            kind, (0,) if kind in ("Q4_0", "Q5_0", "Q8_0") else (0, 2)
        ):
            scale = random.uniform(-0.02, 0.02, raw.shape[:2]).astype("<f2")
            raw[..., at : at + 2] = scale[..., None].view(np.uint8)
        return raw.reshape(N, -1)

    def make(kind: str, N: int, K: int, *, half: bool = False, head_rows: int = 0, seed: int = 0) -> MappedMatrix:
        n = N // 2 if half else N
        up = rows(kind, n, K, seed + 1) if half else None
        return MappedMatrix(kind, (N, K), rows(kind, n, K, seed), up, head_rows)

    return make


@pytest.fixture(scope="session")
def rounded_rows() -> Callable[[Tensor, int], Tensor]:
    """What a packed matrix of so many bits multiplies instead of the rows: groups of 32 as whole numbers times a scale.

    Up to 127 in magnitude, or beside 8-bit weights up to 32512.
    """

    def make(x_TK: Tensor, bits: int) -> Tensor:
        groups = x_TK.float().reshape(len(x_TK), -1, 32)
        largest = groups.abs().amax(-1, keepdim=True)
        steps = 32512.0 if bits == 8 else 127.0
        q = (groups * torch.where(largest > 0, torch.tensor(steps).div(largest), 0)).round()
        return (q.double() * (largest / steps).double()).view(x_TK.shape)

    return make

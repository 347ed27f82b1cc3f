"""The NEON kernels for machines of another kind: compiled by a cross compiler, run by qemu, spoken to over a pipe.

`Emulator` stands in the place of the module `coterie._native`: the same functions on addresses, whose memory it sends
over and puts back. So the same tests reach every instruction set. `neon_check.cpp` is the other end.
"""

import ctypes
import hashlib
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("neon_check.cpp")
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = ["-std=c++20", "-O1", "-static", "-pthread", "-Wall", "-Werror", "-ffp-contract=off", "-Wno-psabi"]
ISA = ["-DCOTERIE_ARM", "-DCOTERIE_ISA=neon", "-DCOTERIE_NEON", "-march=armv8.2-a+dotprod+fp16"]  # as in CMakeLists.txt
LINEAR, EXPERTS, ATTENTION, ROUTE, NORM, ADD, EMBED, REPACK, SWIGLU, ARGMAX = range(1, 11)
_SIZES = (4, 2, 2, 1)  # of float32, float16, bfloat16, int8
_SMALL_BLOCKS = {(4, 0): 18, (4, 1): 20, (5, 0): 22, (5, 1): 24, (8, 0): 34}  # ggml's bytes for 32 weights
_SUPER_BLOCKS = {2: 84, 3: 110, 4: 144, 5: 176, 6: 210}  # for 256

Blob = tuple[int, int, bool]  # address, size, whether it comes back


def missing() -> str | None:
    """What there is to install before the emulator can be built; None: nothing."""
    for command, package in ((COMPILER, "g++-aarch64-linux-gnu"), (EMULATOR, "qemu-user")):
        if shutil.which(command) is None:
            return f"{command} is not there (Debian: apt install {package})"
    return None


def build(folder: Path) -> Path:
    """The program, compiled once for each state of the sources."""
    csrc = ROOT / "csrc"
    sources = [*sorted(csrc.iterdir()), SOURCE, Path(__file__)]
    state = hashlib.sha256(b"\0".join(p.read_bytes() for p in sources)).hexdigest()[:16]
    program = folder / f"neon-{state}"
    if not program.exists():
        units = [str(csrc / name) for name in ("isa.cpp", "repack.cpp", "threads.cpp")] + [str(SOURCE)]
        made = program.with_suffix(".new")
        command = [COMPILER, *FLAGS, *ISA, f"-I{csrc}", *units, "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        for old in set(folder.glob("neon-*")) - {made}:
            old.unlink()
        made.rename(program)
    return program


class Format:
    def __init__(self, bits: int, unit: int, group_units: int, scales: int):
        self.fields = (bits, unit, group_units, scales)


class Matrix:
    """Its numbers and its two blobs, as `neon_check.cpp` reads them."""

    def __init__(
        self, layout: int, format: Format, N: int, K: int, data: int, half: int = 0, up: int = 0, head_rows: int = 0
    ):
        self.format, self.N, self.K, self.half = format, N, K, half
        self.numbers = [layout, *format.fields, N, K, half, head_rows]
        bits, _, _, scales = format.fields
        rows = half or N
        if layout < 3:
            size = rows * K * _SIZES[layout]
        elif layout == 3:
            size = packed_bytes(format, N, K)
        else:
            size = rows * (K // 32 * _SMALL_BLOCKS[bits, scales] if scales < 2 else K // 256 * _SUPER_BLOCKS[bits])
        self.blobs: list[Blob] = [(data, size, False), (up, size if up else 0, False)]


class Matrices(list[Matrix]):
    pass


class Experts(list[tuple[Matrix, Matrix]]):
    def append(self, gate_up: Matrix, down: Matrix) -> None:  # type: ignore[override]
        super().append((gate_up, down))

    def stacked(self, first_type: int, gate_up: int, second_type: int, down: int, n: int, D: int, F: int) -> None:
        none, half = Format(0, 0, 0, 0), F * D * _SIZES[first_type]
        for i in range(n):
            gate, rows = gate_up + 2 * i * half, down + i * D * F * _SIZES[second_type]
            self.append(Matrix(first_type, none, 2 * F, D, gate, F, gate + half), Matrix(second_type, none, D, F, rows))


def packed_bytes(format: Format, N: int, K: int) -> int:
    bits, unit, group_units, scales = format.fields

    def block(n: int) -> int:
        groups, per_group = -(-n // (unit * group_units)), (32, 64, 16, 32, 16)[scales]
        return (64 if scales >= 2 else 0) + groups * per_group + 2 * n * bits

    return -(-N // 16) * (K // 256 * block(256) + (block(K % 256) if K % 256 else 0))


class Emulator:
    """The program, running, with the functions of `coterie._native`."""

    Format, Matrix, Matrices, Experts = Format, Matrix, Matrices, Experts
    packed_bytes = staticmethod(packed_bytes)

    def __init__(self, program: Path):
        self.program = program
        self._process = subprocess.Popen([EMULATOR, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)

    def names(self) -> list[str]:
        return ["neon"]

    def choose(self, name: str) -> None:
        assert name == "neon"

    def set_threads(self, n: int) -> None:
        self._call(0, [n], [])

    def linear(
        self, matrices: Matrices, x: int, x_type: int, T: int, x_stride: int, norm: int, norm_type: int, eps: float,
        out: int, out_type: int, out_stride: int,
    ) -> None:  # fmt: skip
        K = matrices[0].K
        rows = ((T - 1) * x_stride + K) * _SIZES[x_type] if T else 0
        self._call(
            LINEAR,
            [x_type, T, x_stride, norm_type, _bits(eps), out_type, out_stride, len(matrices)],
            [(x, rows, False), _weight(norm, norm_type, K), (out, T * out_stride * _SIZES[out_type], True)],
            matrices,
        )

    def experts(
        self, experts: Experts, x: int, type: int, T: int, D: int, F: int, ids: int, weights: int, S: int, out: int
    ) -> None:
        n = T * D * _SIZES[type]
        blobs = [(x, n, False), (ids, T * S * 4, False), (weights, T * S * 4, False), (out, n, True)]
        self._call(EXPERTS, [type, T, D, F, S, len(experts)], blobs, [m for both in experts for m in both])

    def attention(
        self, qkv: int, type: int, T: int, H: int, G: int, P: int, cos: int, sin: int, k: int, v: int, k_scales: int,
        v_scales: int, cache_type: int, tables: int, table_stride: int, sequences: int, B: int, window: int,
        scale: float, out: int,
    ) -> None:  # fmt: skip
        slots = 1 + max(struct.unpack(f"{3 * B}q", ctypes.string_at(sequences, 24 * B))[::3])
        n_pages = 1 + max(struct.unpack(f"{slots * table_stride}i", ctypes.string_at(tables, slots * table_stride * 4)))
        n_keys, size = n_pages * 64 * G, _SIZES[type]
        cache, scales = n_keys * P * _SIZES[cache_type], n_keys * 4 if cache_type == 3 else 0
        numbers = [type, T, H, G, P, cache_type, table_stride, B, window, _bits(scale)]
        turns = [(cos, T * P * 4, False), (sin, T * P * 4, False)]
        pages = [(k, cache, True), (v, cache, True), (k_scales, scales, True), (v_scales, scales, True)]
        ends = [(tables, slots * table_stride * 4, False), (sequences, 24 * B, False), (out, T * H * P * size, True)]
        self._call(ATTENTION, numbers, [(qkv, T * (H + 2 * G) * P * size, False), *turns, *pages, *ends])

    def route(
        self, x: int, type: int, T: int, D: int, weight: int, E: int, S: int, K: int, renormalise: bool,
        edit_of_row: int, bias: int, top_k: int, ids: int, weights: int, logits: int,
    ) -> None:  # fmt: skip
        n = 1 + max(struct.unpack(f"{T}i", ctypes.string_at(edit_of_row, T * 4))) if edit_of_row else 0
        inputs = [(x, T * D * _SIZES[type], False), (weight, E * D * 4, False)]
        edits = [(edit_of_row, T * 4 if edit_of_row else 0, False), (bias, n * E * 4, False), (top_k, n * 4, False)]
        outputs = [(ids, T * S * 4, True), (weights, T * S * 4, True), (logits, T * E * 4, True)]
        self._call(ROUTE, [type, T, D, E, S, K, int(renormalise)], inputs + edits + outputs)

    def norm(self, x: int, type: int, T: int, D: int, weight: int, weight_type: int, eps: float, out: int) -> None:
        n = T * D * _SIZES[type]
        blobs = [(x, n, False), _weight(weight, weight_type, D), (out, n, True)]
        self._call(NORM, [type, T, D, weight_type, _bits(eps)], blobs)

    def add(self, a: int, b: int, type: int, n: int, out: int) -> None:
        size = n * _SIZES[type]
        self._call(ADD, [type, n], [(a, size, False), (b, size, False), (out, size, True)])

    def swiglu(self, x: int, type: int, T: int, F: int, out: int) -> None:
        n = T * F * _SIZES[type]
        self._call(SWIGLU, [type, T, F], [(x, 2 * n, False), (out, n, True)])

    def argmax(self, x: int, type: int, T: int, V: int, ids: int, values: int) -> None:
        self._call(ARGMAX, [type, T, V], [(x, T * V * _SIZES[type], False), (ids, T * 8, True), (values, T * 4, True)])

    def rotary(self, positions: int, T: int, frequencies: int, P: int, cos: int, sin: int) -> None:
        """Not of an instruction set: the host does it."""
        frequency_P = np.ctypeslib.as_array((ctypes.c_float * P).from_address(frequencies))
        position_T = np.ctypeslib.as_array((ctypes.c_int64 * T).from_address(positions))
        angle_TP = position_T.astype(np.float32)[:, None] * frequency_P
        sign_P = np.where(np.arange(P) < P // 2, -1, 1).astype(np.float32)
        for address, values_TP in ((cos, np.cos(angle_TP)), (sin, np.sin(angle_TP) * sign_P)):
            np.ctypeslib.as_array((ctypes.c_float * (T * P)).from_address(address))[:] = values_TP.reshape(-1)

    def embed(self, table: Matrix, ids: int, T: int, out: int, type: int) -> None:
        self._call(EMBED, [T, type], [(ids, T * 8, False), (out, T * table.K * _SIZES[type], True)], [table])

    def repack(self, matrix: Matrix, out: int, size: int) -> int:
        return self._call(REPACK, [], [(out, size, True)], [matrix])

    def _call(self, operation: int, numbers: list[int], blobs: list[Blob], matrices: Any = ()) -> int:
        numbers, blobs = list(numbers), list(blobs)
        for matrix in matrices:
            numbers += matrix.numbers
            blobs += matrix.blobs
        parts = [struct.pack(f"{len(numbers) + 3}q", operation, len(numbers), *numbers, len(blobs))]
        for address, size, comes_back in blobs:
            parts += [struct.pack("2q", size, comes_back), ctypes.string_at(address, size) if size else b""]
        sent, received = self._process.stdin, self._process.stdout
        assert sent and received
        sent.write(b"".join(parts))
        sent.flush()
        answer = received.read(8)
        assert len(answer) == 8, "the emulated kernels crashed, or wrote beside their output"
        for address, size, comes_back in blobs:
            if comes_back and size:
                ctypes.memmove(address, received.read(size), size)
        return int(struct.unpack("q", answer)[0])


def _bits(x: float) -> int:
    return int(struct.unpack("i", struct.pack("f", x))[0])


def _weight(address: int, type: int, n: int) -> Blob:
    return (address, n * _SIZES[type] if address else 0, False)

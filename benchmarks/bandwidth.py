"""How fast memory is read with all threads: a C loop over 2 GB on large pages, compiled at the first use."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["read_bandwidth"]

_SOURCE = r"""
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
static uint64_t *memory; static size_t n = (size_t)1 << 28;
double read_gb_s(int threads) {
  if (!memory) {
    memory = mmap(0, n * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
#ifdef MADV_HUGEPAGE
    madvise(memory, n * 8, MADV_HUGEPAGE);
#endif
    memset(memory, 1, n * 8);
  }
  struct timespec a, b; uint64_t total = 0;
  clock_gettime(CLOCK_MONOTONIC, &a);
#pragma omp parallel for num_threads(threads) reduction(+ : total) schedule(static)
  for (size_t i = 0; i < n; i++) total += memory[i];
  clock_gettime(CLOCK_MONOTONIC, &b);
  return total ? n * 8 / ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) : 0;
}
"""


@functools.cache
def _library() -> ctypes.CDLL | None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    folder = Path(tempfile.mkdtemp())
    (folder / "read.c").write_text(_SOURCE)
    flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    done = subprocess.run([compiler, *flags, folder / "read.c", "-o", folder / "read.so"], capture_output=True)
    library = ctypes.CDLL(str(folder / "read.so")) if done.returncode == 0 else None
    shutil.rmtree(folder)
    if library is not None:
        library.read_gb_s.restype = ctypes.c_double
    return library


def read_bandwidth(threads: int) -> float:
    """GB/s of one pass; NaN where there is no C compiler with OpenMP."""
    library = _library()
    return float("nan") if library is None else float(library.read_gb_s(threads))

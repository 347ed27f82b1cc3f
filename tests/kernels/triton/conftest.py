"""The Triton kernels on a card where there is one, else in Triton's interpreter on the CPU."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch

IS_CARD = torch.cuda.is_available()
if not IS_CARD:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before `coterie.kernels.triton_*` is imported

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]


@pytest.fixture(scope="session")
def is_card() -> bool:
    """Whether this runs on a CUDA card, where shapes may be large."""
    return IS_CARD


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if IS_CARD else "cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The interpreter makes loop bounds of arrays, which NumPy deprecates, and NumPy remarks on NaN."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"))


@pytest.fixture(autouse=True)
def _products(is_card: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6's interpreter multiplies the bits of bfloat16, which it has as integers."""
    if is_card:
        return
    from triton.runtime import interpreter

    original = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if a.dtype.scalar == interpreter.tl.bfloat16:
            wide = [
                interpreter._convert_float(x.data, interpreter.tl.bfloat16, interpreter.tl.float32, None)
                for x in (a, b)
            ]
            product = wide[0].view("float32") @ wide[1].view("float32")
            return interpreter.TensorHandle(product + d.data, d.dtype.scalar)
        return original(self, a, b, d, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)

"""The Triton kernels on a card where there is one, else in Triton's interpreter on the CPU."""

import importlib.util
import os
from pathlib import Path

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

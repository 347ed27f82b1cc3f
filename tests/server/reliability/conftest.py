"""What these tests share: where the server is, and where the figures of a full run go."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for raw_http and what stands on it
if sys.platform != "linux":
    collect_ignore_glob = ["test_*.py"]  # descriptors and memory are read from /proc


@pytest.fixture(scope="session")
def url(server: Any) -> str:
    """Where the server is that all tests share; they leave it as it was."""
    address: str = server.url
    return address


@pytest.fixture(scope="session")
def figure() -> Callable[..., None]:
    """`figure(name, **numbers)` keeps them in the JSON file that COTERIE_FIGURES names."""
    path = os.environ.get("COTERIE_FIGURES")

    def keep(name: str, **numbers: float) -> None:
        if path is not None:
            file = Path(path)
            figures = json.loads(file.read_text()) if file.exists() else {}
            figures[name] = {key: round(value, 4) for key, value in numbers.items()}
            file.write_text(json.dumps(figures, indent=1) + "\n")

    return keep

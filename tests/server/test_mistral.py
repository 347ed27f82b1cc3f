"""How Mistral's dialect is recognised."""

from types import SimpleNamespace
from typing import Any

import pytest

from coterie.server.mistral import deprecation_header, find_dialect


@pytest.mark.parametrize(
    ("values", "given", "expected"),
    [
        ({}, "openai", "openai"),
        ({}, "mistral", "mistral"),
        ({"random_seed": 0}, "openai", "mistral"),
        ({"safe_prompt": False}, "openai", "mistral"),
        ({"safe_prompt": None, "seed": 1}, "openai", "openai"),
    ],
)
def test_the_dialect(values: dict[str, Any], given: str, expected: str) -> None:
    request: Any = SimpleNamespace(state=SimpleNamespace(dialect=given))
    assert find_dialect(request, values) == expected == request.state.dialect


def test_the_older_name_is_told_of() -> None:
    assert deprecation_header({"safe_mode": False})["deprecation"].startswith("@")
    assert deprecation_header({"safe_prompt": True}) == {}

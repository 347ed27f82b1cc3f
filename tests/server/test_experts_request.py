"""`experts`: pairs and triples within the model's bounds, refused by their place."""

from types import SimpleNamespace
from typing import Any

import pytest

from coterie import load
from coterie.routing.edits import ExpertEdits
from coterie.server.experts_request import echo, edits_of
from coterie.server.failures import ApiError
from coterie.server.schema import read
from coterie.server.schema_sampling import ExpertsField
from coterie.server.settings import Settings


def edits(values: dict[str, Any] | None, **settings: Any) -> ExpertEdits | None:
    served: Any = SimpleNamespace(lm=load(), id="demo", settings=Settings(**settings))
    return edits_of(None if values is None else read(ExpertsField, values), served)


def test_what_is_asked_for() -> None:
    assert edits({"ban": [[0, 1]], "bias": [[1, 2, 3]], "top_k": 1}) == ExpertEdits(((0, 1),), ((1, 2, 3.0),), 1)
    assert edits(None) is None is edits({}) is edits({"ban": []})
    assert echo(None) == {} and echo(read(ExpertsField, {"top_k": 1})) == {
        "experts": {"ban": [], "bias": [], "top_k": 1}
    }


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"boost": 1}, "experts"),
        ({"ban": [5]}, "experts.ban.0"),
        ({"ban": [[0, 1], [0]]}, "experts.ban.1"),
        ({"ban": [[True, 1]]}, "experts.ban.0.0"),
        ({"ban": [[0, 99]]}, "experts.ban.0.1"),
        ({"bias": [[0, 1]]}, "experts.bias.0"),
        ({"bias": [[0, 1, 1e5]]}, "experts.bias.0.2"),
        ({"bias": [[0, 1, "a"]]}, "experts.bias.0.2"),
        ({"top_k": 99}, "experts.top_k"),
        ({"ban": [[0, 1]] * 5000}, "experts.ban"),
        ({"ban": [[0, e] for e in range(7)]}, "experts"),
    ],
)
def test_what_is_refused(values: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError, match="expert") as caught:
        edits(values)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_server_may_not_allow_it() -> None:
    with pytest.raises(ApiError, match="cannot be changed") as caught:
        edits({"top_k": 1}, expert_edits=False)
    assert caught.value.status == 403

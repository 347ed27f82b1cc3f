import json
import random
import uuid

import pytest

from coterie.errors import RequestError
from coterie.eval.needle import Hidden
from coterie.eval.retrieval import Retrieval
from coterie.eval.rows import Files
from coterie.eval.task import Context


def hide(depth: float, room: int, task: Retrieval | None = None) -> Hidden:
    hidden = (task or Retrieval()).hide(random.Random(5), depth, lambda text: len(text) - room)
    assert hidden is not None and len(hidden.prompt) <= room
    return hidden


def object_of(hidden: Hidden) -> dict[str, str]:
    start, end = hidden.prompt.index("{"), hidden.prompt.index("}")
    pairs: dict[str, str] = json.loads(hidden.prompt[start : end + 1])
    return pairs


def key_of(hidden: Hidden) -> str:
    return hidden.prompt.split('Key: "')[1].split('"')[0]


def test_the_value_of_the_key_at_that_depth_among_others_that_are_there() -> None:
    found = [hide(depth, 900) for depth in (0.0, 0.5, 1.0)]
    pairs = object_of(found[0])
    assert [object_of(h) for h in found] == [pairs] * 3  # one object, read once
    keys = list(pairs)
    assert [key_of(h) for h in found] == [keys[0], keys[round(0.5 * (len(keys) - 1))], keys[-1]]
    for h in found:
        assert h.value == pairs[key_of(h)] and h.guess == 1 / len(pairs)
        assert len(h.others) == 9 and set(h.others) <= set(pairs.values()) - {h.value}
        assert h.prompt.endswith("Corresponding value:")


def test_few_pairs_have_few_candidates_and_none_no_prompt() -> None:
    hidden = hide(1.0, 190)
    assert len(object_of(hidden)) == 2 and len(hidden.others) == 1
    assert Retrieval().hide(random.Random(0), 0.5, lambda text: len(text) - 120) is None


def test_whole_uuids_on_request() -> None:
    task = Retrieval(Context(Files(None), settings={"form": "uuid"}))
    assert all(str(uuid.UUID(text)) == text for text in (hide(0.5, 900, task).value, task.longest_value))
    with pytest.raises(RequestError, match="expected short or uuid"):
        Retrieval(Context(Files(None), settings={"form": "xml"}))


def test_what_is_written_is_read_between_its_quotes() -> None:
    task = Retrieval()
    assert task.spell("4a8f0b1c") == ' "4a8f0b1c"'
    assert [task.read(t) for t in (' "4a8f0b1c",', ' "4a8f0b1c', "4a8f0b1c", ' ""', "")] == [
        "4a8f0b1c", "4a8f0b1c", "4a8f0b1c", None, None,
    ]  # fmt: skip

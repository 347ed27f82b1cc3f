"""100 hostile schemas and grammars: refused within two seconds, or borne without harm, while others go on unchanged."""

from typing import Any

from hostile_grammars import BORNE, REFUSED
from neighbours import Neighbours
from raw_http import ask
from refusals import check_body, check_refusal, leaks

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
PATH = "/v1/chat/completions"


def test_the_table_is_as_large_as_it_says() -> None:
    assert len(REFUSED) >= 100


def test_hostile_grammars_are_refused_and_nobody_else_notices(url: str, figure: Any) -> None:
    wrong, slowest = [], 0.0
    with Neighbours(url) as neighbours:
        for name, fields in REFUSED.items():
            try:
                reply = ask(url, "POST", PATH, {**CHAT, **fields})
                slowest = max(slowest, reply.seconds)
                (field,) = fields
                body = check_refusal(reply, 400)
                is_named = body["param"] is not None and body["param"].split(".")[0] == field
                assert is_named or "the body's JSON is nested deeper" in body["message"], body
                assert len(body["message"]) < 600, body
            except (AssertionError, OSError, ValueError, LookupError) as e:
                wrong.append(f"{name}: {type(e).__name__} {e}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(REFUSED)}:", *wrong[:60]])
    figure("hostile grammars", requests=len(REFUSED), slowest_s=slowest, neighbours=neighbours.n_answers)


def test_large_but_lawful_ones_are_borne(url: str) -> None:
    """Answered, or refused like the others; a grammar that cannot go on ends its own request."""
    with Neighbours(url):
        for name, fields in BORNE.items():
            reply = ask(url, "POST", PATH, {**CHAT, **fields})
            assert reply.status in (200, 400), (name, reply, reply.text[:300])
            assert reply.seconds < 10 and not leaks(reply.text), (name, reply)
            if reply.status != 200:
                check_body(reply.json())

"""150 named bad requests: each is refused with the status, the field and the words of the table, and harms nobody."""

from typing import Any

from bad_requests import BAD_REQUESTS, CHAT, MISTRAL, Bad
from neighbours import Neighbours
from raw_http import Reply, ask
from refusals import check_refusal


def test_the_table_is_as_large_as_it_says() -> None:
    assert len({case.name for case in BAD_REQUESTS}) == len(BAD_REQUESTS) >= 150


def test_every_bad_request_is_refused_and_nobody_else_notices(url: str, figure: Any) -> None:
    wrong, slowest = [], 0.0
    with Neighbours(url) as neighbours:
        for case in BAD_REQUESTS:
            try:
                reply = ask(url, case.method, case.path, case.body, case.headers)
                slowest = max(slowest, reply.seconds)
                check(case, reply)
            except (AssertionError, OSError, ValueError, LookupError) as e:
                wrong.append(f"{case.name}: {type(e).__name__} {e}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(BAD_REQUESTS)}:", *wrong[:60]])
    figure("bad requests", requests=len(BAD_REQUESTS), slowest_s=slowest, neighbours=neighbours.n_answers)


def test_the_same_in_the_other_dialect(url: str) -> None:
    """A refused value is 422 there, anything else keeps its status."""
    wrong = []
    for case in (c for c in BAD_REQUESTS if c.path == CHAT and not c.headers):
        statuses = (*case.statuses, 422) if 400 in case.statuses else case.statuses
        try:
            check(case, ask(url, case.method, case.path, case.body, MISTRAL), statuses)
        except (AssertionError, OSError, ValueError, LookupError) as e:
            wrong.append(f"{case.name}: {type(e).__name__} {e}")
    assert not wrong, "\n".join([f"{len(wrong)}:", *wrong[:60]])


def check(case: Bad, reply: Reply, statuses: tuple[int, ...] | None = None) -> None:
    body = check_refusal(reply, *(statuses or case.statuses), words=case.words, longest=case.longest)
    if case.param is not None:
        assert body["param"] is not None and body["param"].split(".")[0] == case.param, body
        assert case.param.split("_")[0] in body["message"], body

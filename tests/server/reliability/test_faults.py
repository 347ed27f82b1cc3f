"""Eleven ways in which a step fails × three moments: the request to blame is told so, the others never notice."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from faulty_server import KINDS, SECRET, landmine
from neighbours import Neighbours
from probe import Probe
from processes import Scripted, script
from raw_http import Stream, ask
from refusals import check_body, leaks

TEXT = "/v1/completions"
MOMENTS = ("in prompt", "late in prompt", "in decode")


@pytest.fixture(scope="module")
def faulty() -> Iterator[Scripted]:
    with script("faulty_server.py", "cache_tokens=32768", "max_live=8") as server:
        yield server


def body_with(mine: int, moment: str) -> dict[str, Any]:
    """A request that meets the landmine at this moment."""
    plain = {"max_tokens": 6, "temperature": 0}
    if moment == "in decode":
        return {**plain, "prompt": [5, 9, 11], "logit_bias": {str(mine): 100}}
    n = 3 if moment == "in prompt" else 700
    return {**plain, "prompt": [*[5 + i % 50 for i in range(n)], mine, 9]}


def streamed_ending(url: str, body: dict[str, Any]) -> str:
    """How a stream ended: its finish_reason, or the status that it never began with."""
    with Stream(url, TEXT, body) as stream:
        if stream.status != 200:
            failed = stream.rest()
            check_body(failed.json())
            assert not leaks(failed.text) and SECRET not in failed.text
            return str(failed.status)
        *frames, done = list(stream)
    assert done == "[DONE]"
    assert not any(SECRET in frame or leaks(frame) for frame in frames)
    last = json.loads(frames[-1])
    if "error" in last:
        assert last["error"]["message"] and last["choices"][0]["finish_reason"] == "error"
        return "error"
    return next(c["finish_reason"] for f in map(json.loads, frames) for c in f["choices"] if c["finish_reason"])


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_fault_is_its_own_requests_end(faulty: Scripted, moment: str, is_full: bool, figure: Any) -> None:
    probe = Probe(faulty.url, faulty.pid)
    before, n, endings = probe.at_rest(), 20 if is_full else 2, []
    with Neighbours(faulty.url) as neighbours:
        for kind in KINDS:
            if kind == "decode" and moment != "in decode":
                continue  # a prompt's text is not made
            body = body_with(landmine(kind), moment)
            for k in range(n):
                if k % 2:
                    reply = ask(faulty.url, "POST", TEXT, body)
                    assert SECRET not in reply.text and not leaks(reply.text), reply.text
                    ending = str(reply.status)
                else:
                    ending = streamed_ending(faulty.url, body)
                endings.append(ending)
                expected = {"500", "503", "error"}
                if kind in ("infinite", "huge"):  # the norm may make sense of them
                    expected |= {"200", "length", "stop"}
                assert ending in expected, (kind, ending)
    after = probe.at_rest(before)
    assert after.cache <= before.cache + 1e-9 and after.descriptors <= before.descriptors, (before, after)
    assert ask(faulty.url, "GET", "/ready").status == 200
    figure(f"faults {moment}", faults=len(endings), told=sum(e in ("500", "503", "error") for e in endings),
           neighbours=neighbours.n_answers)  # fmt: skip


def test_a_fault_among_many_samples_and_many_requests(faulty: Scripted) -> None:
    """n = 4 of which all fail, beside requests that do not."""
    body = {**body_with(landmine("runtime"), "in decode"), "n": 4}
    with Neighbours(faulty.url):
        reply = ask(faulty.url, "POST", TEXT, body)
    assert reply.status in (500, 503), reply
    check_body(reply.json())


def test_the_log_has_what_the_answer_has_not(faulty: Scripted) -> None:
    ask(faulty.url, "POST", TEXT, body_with(landmine("runtime"), "in prompt"))
    assert any(SECRET in line for line in faulty.log)


def test_it_still_ends_as_it_should(faulty: Scripted) -> None:
    assert faulty.stop() == 0

"""A whole measurement: the model is found, the warm-up is apart, every request is as planned."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.bench.client import Failure
from coterie.bench.measure import Plan, measure
from coterie.bench.prompts import Lengths

MODELS = json.dumps({"data": [{"id": "m", "meta": {"n_vocab": 1000}}]}).encode()


def measured(api: Callable[..., Any], answers: dict[str, Any], plan: Plan) -> Any:
    async def run() -> Any:
        async with api(answers) as fake:
            return *(await measure(fake.client, plan)), [body for path, _, body in fake.requests if body]

    return asyncio.run(run())


def test_random_prompts_after_another_one_to_warm_up(api: Callable[..., Any], answers: Any) -> None:
    plan = Plan(seed=1, lengths=Lengths(9, 4), n_prompts=5, extra={"top_k": 3})
    served = {"/v1/models": answers.reply(MODELS), "/v1/completions": answers.tokens("ab")}
    run, model, bodies = measured(api, served, plan)
    assert model == "m" and len(run.outcomes) == 5 and len(bodies) == 6
    assert len({tuple(b["prompt"]) for b in bodies}) == 6 and {len(b["prompt"]) for b in bodies} == {9}
    fixed = {k: v for k, v in bodies[0].items() if k != "prompt"}
    assert fixed == {
        "model": "m", "max_tokens": 4, "temperature": 0.0, "stream": True, "ignore_eos": True, "top_k": 3,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert plan.settings("m")["request_rate"] == "inf"


def test_a_dataset_in_its_order(api: Callable[..., Any], answers: Any, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    plan = Plan(seed=1, lengths=Lengths(9, 4), n_prompts=3, n_warmups=0, dataset=tmp_path / "d.jsonl", ignore_eos=False)
    served = {"/v1/models": answers.reply(MODELS), "/v1/completions": answers.tokens("ab")}
    _, _, bodies = measured(api, served, plan)
    assert sorted(b["prompt"] for b in bodies) == ["a", "a", "b"] and "ignore_eos" not in bodies[0]


def test_a_refused_warm_up_ends_it_with_the_servers_reason(api: Callable[..., Any], answers: Any) -> None:
    served = {"/v1/models": answers.reply(MODELS), "/v1/completions": answers.reply(b'{"message": "too long"}', 400)}
    with pytest.raises(Failure, match="status 400: too long"):
        measured(api, served, Plan(seed=1, lengths=Lengths(9, 4)))

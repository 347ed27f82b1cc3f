"""Routing in JSON, and the shelf of recent answers."""

import base64
import io
from typing import Any

import numpy as np
import torch

from coterie.server.routing_answer import Shelf, final_routing, streamed_routing
from coterie.server.tokens import Token


def token(i: int, *, is_routed: bool = True) -> Token:
    """Of a model of two layers, two experts a token."""
    experts = torch.tensor([[[i, -1], [2, 3]]], dtype=torch.int32)
    weights = torch.tensor([[[1.0, 0.0], [0.123456789, 0.876543211]]])
    return Token(i, f"t{i}", b"t", False, routing=(experts, weights) if is_routed else None)


def test_both_forms_say_the_same() -> None:
    tokens = [token(0), token(1, is_routed=False), token(2)]
    whole, streamed = final_routing(tokens), streamed_routing(tokens)
    assert whole["routing"] == streamed
    assert streamed["experts"] == [[[0, -1], [2, 3]], [[2, -1], [2, 3]]]
    assert streamed["weights"][0] == [[1.0, 0.0], [0.12346, 0.87654]]
    assert (streamed["tokens"], streamed["token_ids"]) == (["t0", "t2"], [0, 2])
    array = np.load(io.BytesIO(base64.b64decode(whole["routed_experts"])), allow_pickle=False)
    assert array.dtype == np.int16 and array.tolist() == streamed["experts"]


def test_an_answer_without_tokens() -> None:
    assert final_routing([])["routing"] == {"experts": [], "weights": [], "tokens": [], "token_ids": []}


def test_the_shelf_forgets_the_oldest_and_knows_whose_it_is() -> None:
    shelf = Shelf()
    for i in range(300):
        shelf.put(f"a{i}", "me", "demo", 0, [[token(i)]])
    assert shelf.get("a0", "me") is None and shelf.get("a299", "you") is None
    kept = shelf.get("a299", "me")
    assert kept is not None
    (choice,) = kept.to_json("a299")["choices"]
    assert choice["experts"] == [[[299, -1], [2, 3]]] and choice["tokens"] == ["t299"]


def test_the_shelf_has_a_size() -> None:
    shelf, many = Shelf(), [token(1)] * 50_000
    for i in range(20):
        shelf.put(f"a{i}", "", "demo", 0, [many])
    kept: list[Any] = [shelf.get(f"a{i}", "") for i in range(20)]
    assert kept[-1] is not None and sum(k.n_bytes for k in kept if k is not None) <= 32 << 20
    assert kept[0] is None

"""What a recording holds is what the routers said. Shapes: T tokens, L layers, K slots."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coterie.analysis.trace import Trace, open_trace
from coterie.engine.record import Recorder, Window, read_windows
from coterie.engine.runner import Runner
from coterie.errors import RequestError
from coterie.model import Transformer

MakeModel = Callable[..., Transformer]


@dataclass
class Tiny:
    """A language model as far as a recorder needs one."""

    model: Transformer
    tokenizer: Any = None
    name: str = "tiny"

    @property
    def has_tokenizer(self) -> bool:
        return self.tokenizer is not None


def record(lm: Tiny, path: Path, windows: list[Window], **options: Any) -> Trace:
    with Recorder(lm, path, **options) as recorder:
        for _ in read_windows(recorder, windows):
            pass
    return open_trace(path)


def routed(model: Transformer, ids: list[int]) -> list[Any]:
    """The routing of each layer, read from an empty cache."""
    return Runner(model).feed([(0, ids)]).routings


def test_a_recording_is_what_the_routers_said(make_model: MakeModel, tmp_path: Path, byte_tokenizer: Any) -> None:
    model = make_model()
    texts = [[1, 70, 80, 90, 100], [1, 50, 60], [1, *range(100, 200)]]
    windows = [Window(texts[0], "a"), Window(texts[1], "a", continues=True), Window(texts[2], "b")]
    trace = record(Tiny(model, byte_tokenizer), tmp_path / "t", windows, logits=True)
    assert trace.token_ids.tolist() == [*texts[0], *texts[1], *texts[2]]
    assert trace.documents.tolist() == [0] * 8 + [1] * 101
    assert trace.positions.tolist() == [*range(5), *range(3), *range(101)]
    assert [trace.domains[d] for d in trace.domain_of_T] == ["a"] * 8 + ["b"] * 101
    assert trace.pieces is not None and trace.pieces[70] == byte_tokenizer.piece(70) and trace.vocab_size == 259
    start = 0
    for ids in texts:
        for layer, routing in enumerate(routed(model, ids)):
            at = start, start + len(ids), layer
            assert (trace.experts(*at) == routing.ids_TK.numpy()).all()
            assert abs(trace.weights(*at) - routing.weights_TK.numpy()).max() < 1 / 509
            assert np.allclose(trace.logits(*at), routing.logits_TE.numpy(), atol=1e-2, rtol=1e-3)
        start += len(ids)


def test_a_window_longer_than_a_pass_is_one_window(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(max_position_embeddings=2048)
    ids = [1, *(3 + n % 250 for n in range(1200))]
    trace = record(Tiny(model), tmp_path / "t", [Window(ids, "a"), Window([1, 5], "a")])
    assert trace.positions.tolist() == [*range(1201), 0, 1] and trace.documents.tolist() == [0] * 1201 + [1] * 2
    assert (trace.experts(0, 1201, 2) == routed(model, ids)[2].ids_TK.numpy()).all()
    assert trace.pieces is None


def test_a_guess_is_what_the_next_router_says_to_this_layers_input(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    ids = [1, 40, 50, 60, 70]
    trace = record(Tiny(model), tmp_path / "t", [Window(ids, "a")], guess=True)
    guesses = trace.guesses()
    assert guesses is not None and (guesses[:, 0] == -1).all()
    with torch.inference_mode():
        x_TD = model.embed(torch.tensor(ids))
        moe = model.layers[1].feed_forward
        assert (guesses[:, 1] == moe.router(moe.norm(x_TD)).ids_TK.numpy()).all()
    plain = record(Tiny(model), tmp_path / "p", [Window(ids, "a")])
    assert (plain.experts() == trace.experts()).all() and plain.guesses() is None


def test_a_single_layer_has_nothing_to_guess(make_model: MakeModel, tmp_path: Path) -> None:
    trace = record(Tiny(make_model(num_hidden_layers=1)), tmp_path / "t", [Window([1, 40, 50], "a")], guess=True)
    guesses = trace.guesses()
    assert guesses is not None and guesses.shape == (3, 1, 2) and (guesses == -1).all()


def test_guessing_shares_every_weight_and_leaves_the_model_alone(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    with Recorder(Tiny(model), tmp_path / "t", guess=True) as recorder:
        mine = {p.data_ptr() for p in recorder.model.parameters()}
        assert mine == {p.data_ptr() for p in model.parameters()} and recorder.model is not model
        assert all(type(block).__name__ == "Block" for block in model.layers)


def test_what_has_no_choice_of_experts_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    dense = make_model(num_local_experts=None)
    with pytest.raises(RequestError, match="dense model: it has no experts"):
        Recorder(Tiny(dense), tmp_path / "t")
    soft = make_model(num_experts_per_tok=4, router={"kind": "soft"}, norm_topk_prob=False)
    with pytest.raises(RequestError, match="soft router"):
        Recorder(Tiny(soft), tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["expert_choice", "hash", "sigmoid_bias", "switch", "dense"])
def test_every_other_router(make_model: MakeModel, tmp_path: Path, kind: str) -> None:
    K = {"switch": 1, "dense": 4}.get(kind, 2)
    model = make_model(num_experts_per_tok=K, router={"kind": kind}, norm_topk_prob=kind == "sigmoid_bias")
    windows = [[1, 20, 30, 40, 50, 60], [1, 90, 80]]
    trace = record(Tiny(model), tmp_path / "t", [Window(ids, "a") for ids in windows], guess=True, logits=True)
    start = 0
    for ids in windows:
        for layer, routing in enumerate(routed(model, ids)):
            found = trace.experts(start, start + len(ids), layer)
            wanted = routing.ids_TK.numpy()
            assert (found[:, : wanted.shape[1]] == wanted).all() and (found[:, wanted.shape[1] :] == -1).all()
        start += len(ids)


@pytest.mark.parametrize(
    ("kind", "norm", "expected"),
    [("topk", True, True), ("topk", False, False), ("topk_all", True, False), ("gshard", True, True)],
)
def test_the_header_says_whether_weights_add_up_to_1(
    make_model: MakeModel, tmp_path: Path, kind: str, norm: bool, expected: bool
) -> None:
    model = make_model(router={"kind": kind}, norm_topk_prob=norm)
    trace = record(Tiny(model), tmp_path / "t", [Window([1, 20, 30, 40], "a")])
    assert trace.form.is_normalised is expected
    assert (abs(trace.weights().sum(-1) - 1).max() < 0.01) == expected


def test_an_exception_leaves_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    with pytest.raises(KeyboardInterrupt), Recorder(Tiny(model), tmp_path / "t") as recorder:
        recorder.add([1, 2], Runner(model).feed([(0, [1, 2])]), "a")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_close_finishes_and_adding_in_pieces_is_one_document(make_model: MakeModel, tmp_path: Path) -> None:
    model, ids = make_model(), [1, 9, 8, 7]
    recorder = Recorder(Tiny(model), tmp_path / "t")
    runner = Runner(model)
    recorder.add(ids[:3], runner.feed([(0, ids[:3])]), "a")
    output = runner.feed([(0, ids[3:])])
    recorder.add(ids[3:], output, "a", position=3)
    recorder.add(ids[3:], output, "a", position=3, continues=False)  # the end of another text with that beginning
    recorder.close()
    recorder.close()
    trace = open_trace(tmp_path / "t")
    assert trace.documents.tolist() == [0, 0, 0, 0, 1] and trace.positions.tolist() == [0, 1, 2, 3, 3]


def test_fingerprints_tell_models_apart(make_model: MakeModel, tmp_path: Path) -> None:
    prints = set()
    for n, model in enumerate((make_model(), make_model(1), make_model(rope_theta=1e4), make_model())):
        if n == 3:
            with torch.no_grad():
                model.layers[2].feed_forward.experts.down[3, 0, 0] += 1
        prints.add(record(Tiny(model), tmp_path / "t", [Window([1, 2], "a")]).fingerprint)
    assert len(prints) == 4
    assert record(Tiny(make_model()), tmp_path / "t", [Window([1], "b")]).fingerprint in prints

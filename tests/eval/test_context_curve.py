import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from coterie.eval.context_curve import Block, Curve, context_lengths, curve, place_blocks
from coterie.eval.text_score import Text
from coterie.eval.windows import Reader
from coterie.model import Transformer
from coterie.model.attention import WholeSequences


def text(n: int) -> Text:
    return Text("x", tuple(torch.randint(3, 32, (n,), generator=torch.Generator().manual_seed(n)).tolist()), 2 * n)


@pytest.fixture(scope="module")
def reader(make_model: Callable[..., Transformer]) -> Reader:
    return Reader(make_model(vocab_size=32))


def test_lengths_are_halves_of_the_longest() -> None:
    assert context_lengths(2048) == (128, 256, 512, 1024, 2048)
    assert context_lengths(32768) == (512, 1024, 2048, 4096, 8192, 16384, 32768)
    assert context_lengths(100) == (100,)


def test_the_example_of_the_page() -> None:
    assert place_blocks([text(200)], 100, 50, 2) == (Block(0, 100), Block(0, 200))


def test_blocks_do_not_overlap_and_lie_in_many_texts() -> None:
    texts = [text(n) for n in (90, 100, 149, 150, 400, 1000)]
    blocks = place_blocks(texts, 100, 50, 12)
    assert len(blocks) == 12 and {b.text for b in blocks} == {1, 2, 3, 4, 5}
    for a, b in pairwise(blocks):
        assert b.text > a.text or b.stop - a.stop >= 50
    assert all(100 <= b.stop <= len(texts[b.text].ids) for b in blocks)
    assert len(place_blocks(texts, 100, 50, 10_000)) == sum([1, 1, 2, 7, 19])
    assert place_blocks(texts, 2000, 50, 5) == ()
    assert {b.text for b in place_blocks([text(60)] * 9, 50, 10, 3)} == {0, 3, 6}


def test_the_same_tokens_after_every_length(make_model: Callable[..., Transformer]) -> None:
    model = make_model(vocab_size=32)
    texts, seen = [text(300), text(90), text(280)], list[tuple[int, int]]()
    found = curve(
        Reader(model), texts, "x", lengths=(32, 64, 256, 512), n_scored=64, n_blocks=4, prefix=1,
        progress=lambda d, t: seen.append((d, t)),
    )  # fmt: skip
    assert found is not None and found.lengths == (32, 64, 256) and found.n_scored == 16
    assert seen[-1] == (4 * 352, 4 * 352)
    block = found.blocks[0]
    ids = texts[block.text].ids[block.stop - 64 : block.stop]
    with torch.inference_mode():
        out = model(torch.tensor([1, *ids[:-1]]), torch.arange(64), WholeSequences(1, None))
        logp_TV = model.head(out.hidden_TD).log_softmax(-1)[-16:]
    nats = -sum(float(row[target]) for row, target in zip(logp_TV, ids[-16:], strict=True))
    assert found.nats[1][0] == pytest.approx(nats, rel=1e-4)


def test_no_text_is_long_enough(reader: Reader) -> None:
    assert curve(reader, [text(90), text(70)], "x", lengths=(64, 128, 256), prefix=1) is None


def test_gain_is_of_the_same_tokens() -> None:
    """Blocks differ wildly, and each gains exactly 2 nats over 4 tokens: nothing is open about the gain."""
    blocks = (Block(0, 10), Block(0, 20), Block(1, 10), Block(2, 10))
    found = Curve("x", (64, 128), 4, blocks, ((12.0, 40.0, 6.0, 90.0), (10.0, 38.0, 4.0, 88.0)))
    assert found.perplexity(0).value == pytest.approx(math.exp(148 / 16))
    gain = found.gain(0, 1)
    assert gain.value == 0.5 and gain.stderr == pytest.approx(0, abs=1e-12)
    one_text = Curve("x", (64, 128), 4, (Block(0, 9), Block(0, 19)), ((4.0, 8.0), (4.0, 8.0)))
    assert one_text.perplexity(1).stderr is not None

"""Asks any model what items ask: likelihoods in one batch of trees, generations decoded together.

What is too long for the context loses its beginning, as in lm-eval, and is counted. An item is handed on as soon as all
its answers are there, so that an interrupted run has lost little.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from coterie.api import LanguageModel
from coterie.engine.record import Window, read_windows
from coterie.engine.score import Score, encode_pair
from coterie.errors import ContextError, CoterieError
from coterie.eval.scorer import Pair, Scorer, fit
from coterie.eval.task import Answer, Ask, Choose, Generate, Item, Rolled, Rolling
from coterie.model import Output

__all__ = ["Asker"]

_BLOCK = 1 << 20  # tokens of texts that are sorted together
_TOGETHER = 64  # prompts handed to the engine at a time
Save = Callable[[Item, list[Answer]], None]


class Asker:
    """`n_read` counts tokens the model was fed, `n_cut` the asks that lost their beginning."""

    def __init__(self, lm: LanguageModel, *, seed: int = 0, recorder: Any = None):
        self._lm, self._seed, self._recorder = lm, seed, recorder
        self._limit = lm.config.max_position_embeddings
        self._scorer = Scorer(lm.model)
        self._n_generated = 0
        self.n_cut = 0

    @property
    def n_read(self) -> int:
        return self._scorer.n_read + self._n_generated

    @property
    def n_asked(self) -> int:
        """Tokens of every context with every continuation, had nothing been shared."""
        return self._scorer.n_asked + self._n_generated

    def ask(self, items: Sequence[Item], domain: str, save: Save) -> None:
        """Answer every item, calling `save` with each as it is finished, in any order."""
        pending = [_Pending(item, save) for item in items]
        self._likelihoods(pending, domain)
        self._generations(pending, domain)
        assert all(p.n_missing == 0 for p in pending)

    def _likelihoods(self, pending: "list[_Pending]", domain: str) -> None:
        block: list[tuple[_Pending, int, list[Pair]]] = []
        n = 0
        for p in pending:
            for place, ask in enumerate(p.item.asks):
                if isinstance(ask, Generate):
                    continue
                with _named(domain, p.item):
                    pairs = self._pairs(ask)
                if not pairs:  # of an empty text
                    p.take(place, _answer(ask, [], []))
                    continue
                block.append((p, place, pairs))
                n += sum(len(context) + len(ids) for context, ids in pairs)
                if n > _BLOCK:
                    self._score(block, domain)
                    block, n = [], 0
        self._score(block, domain)

    def _score(self, block: "list[tuple[_Pending, int, list[Pair]]]", domain: str) -> None:
        owners = [number for number, (_, _, pairs) in enumerate(block) for _ in pairs]
        starts = [0]
        for _, _, pairs in block:
            starts.append(starts[-1] + len(pairs))
        missing = [len(pairs) for _, _, pairs in block]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(owners)

        def done(pair: int, logprob: float, greedy: bool) -> None:
            found[pair] = logprob, greedy
            number = owners[pair]
            missing[number] -= 1
            if not missing[number]:
                p, place, pairs = block[number]
                p.take(place, _answer(p.item.asks[place], pairs, found[starts[number] : starts[number + 1]]))

        def seen(ids: Sequence[int], output: Output, pair: int, position: int) -> None:
            self._recorder.add(ids, output, domain, position=position, continues=False)

        self._scorer.score(
            [pair for _, _, pairs in block for pair in pairs], seen=seen if self._recorder else None, done=done
        )

    def _pairs(self, ask: Choose | Rolling) -> list[Pair]:
        tokenizer = self._lm.tokenizer
        if isinstance(ask, Rolling):
            return list(_windows(tokenizer.encode(ask.text), self._prefix(), self._limit))
        pairs, n_cut = list[Pair](), 0
        for continuation in ask.continuations:
            context, ids = encode_pair(tokenizer, ask.context, continuation)
            fitting, is_cut = fit(context, ids, self._limit)
            n_cut |= is_cut
            pairs.append((fitting, ids))
        self.n_cut += n_cut
        return pairs

    def _prefix(self) -> int:
        tokenizer = self._lm.tokenizer
        return next((i for i in (tokenizer.bos_id, tokenizer.eos_id) if i is not None), 0)

    def _generations(self, pending: "list[_Pending]", domain: str) -> None:
        groups: dict[Any, list[tuple[_Pending, int, Generate, list[int]]]] = {}
        for p in pending:
            for place, ask in enumerate(p.item.asks):
                if isinstance(ask, Generate):
                    seed = 0 if ask.temperature == 0 else self._seed_of(p.item.id, place)
                    key = (ask.stop, ask.max_tokens, ask.n, ask.temperature, ask.top_p, seed)
                    with _named(domain, p.item):
                        prompt = self._prompt(ask)
                    groups.setdefault(key, []).append((p, place, ask, prompt))
        for (stop, max_tokens, n, temperature, top_p, seed), members in groups.items():
            members.sort(key=lambda member: len(member[3]))
            options = dict(stop=[*stop], max_tokens=max_tokens, n=n, temperature=temperature, top_p=top_p, seed=seed)
            for start in range(0, len(members), _TOGETHER):
                self._generate(members[start : start + _TOGETHER], options, domain)

    def _generate(
        self, members: "list[tuple[_Pending, int, Generate, list[int]]]", options: Mapping[str, Any], domain: str
    ) -> None:
        for (p, place, _, ids), completion in zip(
            members, self._lm.generate_many([ids for *_, ids in members], **options), strict=True
        ):
            samples = [completion, *completion.others]
            self._n_generated += len(ids) + sum(len(sample.token_ids) for sample in samples)
            if self._recorder is not None:
                # Read once more for its routing: a pass over what was written costs little beside writing it.
                texts = [Window([*ids, *sample.token_ids], domain) for sample in samples]
                deque(read_windows(self._recorder, texts), maxlen=0)
            p.take(place, [sample.text for sample in samples])

    def _prompt(self, ask: Generate) -> list[int]:
        """The end of the prompt that leaves room for the answer."""
        lm = self._lm
        if isinstance(ask.prompt, str):
            ids = lm.tokenizer.encode(ask.prompt, bos=True)
        elif lm.chat_form is None:
            ids = lm.tokenizer.encode("\n".join(turn["content"] for turn in ask.prompt), bos=True)
        else:
            ids = lm.chat_form.encode([dict(turn) for turn in ask.prompt], lm.tokenizer)
        room = self._limit - ask.max_tokens
        if room < 1:
            raise ContextError(
                f"answers of up to {ask.max_tokens} tokens leave no room for a question in a context of {self._limit}"
            )
        self.n_cut += len(ids) > room
        return ids[-room:]

    def _seed_of(self, name: str, place: int) -> int:
        digest = hashlib.sha256(f"{self._seed}/{name}/{place}".encode()).digest()
        return int.from_bytes(digest[:4], "big")


@contextmanager
def _named(task: str, item: Item) -> Iterator[None]:
    """A text that the model cannot take is named by the item it stands in."""
    try:
        yield
    except CoterieError as error:
        raise type(error)(f"{task}, item {item.id}: {error}") from None


class _Pending:
    """An item and the answers it has so far."""

    def __init__(self, item: Item, save: Save):
        self.item, self._save = item, save
        self._answers: list[Answer | None] = [None] * len(item.asks)
        self.n_missing = len(item.asks)

    def take(self, place: int, answer: Answer) -> None:
        self._answers[place] = answer
        self.n_missing -= 1
        if not self.n_missing:
            self._save(self.item, [a for a in self._answers if a is not None])


def _answer(ask: Ask, pairs: list[Pair], found: list[tuple[float, bool]]) -> Answer:
    if isinstance(ask, Choose):
        return [
            Score(logprob, greedy, len(ids), len(text.encode()))
            for (logprob, greedy), (_, ids), text in zip(found, pairs, ask.continuations, strict=True)
        ]
    assert isinstance(ask, Rolling)
    return Rolled(-sum(lp for lp, _ in found), sum(len(ids) for _, ids in pairs), len(ask.text.encode()))


def _windows(ids: Sequence[int], prefix: int, limit: int) -> Iterator[Pair]:
    """Each token once: after the prefix in the first window; later windows begin with the last token before them, and
    the last one reaches back as far as it can.
    """
    if not ids:
        return
    yield [prefix], ids[:limit]
    done = min(limit, len(ids))
    while done < len(ids):
        stop = min(done + limit, len(ids))
        yield ids[max(0, stop - limit - 1) : done], ids[done:stop]
        done = stop

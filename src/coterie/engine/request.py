"""What a caller may ask for, checked before any work starts.

Each message is one sentence with the field, what it was and what it may be. `max_tokens=0` is allowed: the prompt is
read, nothing is written. A bool is not a number here, although Python says that it is; numpy's numbers are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from coterie.config import ModelConfig
from coterie.engine.constraint import Constraint
from coterie.errors import ContextError, RequestError, nearest
from coterie.routing.edits import ExpertEdits

__all__ = ["Request", "SamplingParams", "check_ids", "check_text", "require_decoding"]

_LARGEST_BIAS = 100.0
_MOST_LOGPROBS = 20
_MOST_SAMPLES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """The arguments of `generate`, normalised: `stop` and `stop_token_ids` are tuples, `logit_bias` has int keys.

    Raises `RequestError` on a wrong type or bound; `check_model` adds what depends on the model.
    """

    max_tokens: int = 256
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # 1: off
    top_k: int = 0  # 0: off
    min_p: float = 0.0  # 0: off
    typical_p: float = 1.0  # 1: off
    repetition_penalty: float = 1.0  # 1: off
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None  # None: another one each time
    n: int = 1
    logprobs: int | None = None  # how many alternatives beside the chosen token; None: no log-probabilities
    routing: bool = False
    min_tokens: int = 0  # before so many, nothing ends the text
    include_stop: bool = False  # the stop string, or the stop id's text, stays in the text
    ignore_eos: bool = False  # the model's own end ends nothing

    def __post_init__(self) -> None:
        self._check_numbers()
        _set(self, "stop", _strings("stop", self.stop))
        _set(
            self,
            "stop_token_ids",
            tuple(_id("stop_token_ids", i) for i in _list("stop_token_ids", self.stop_token_ids)),
        )
        _set(self, "logit_bias", _bias(self.logit_bias))
        for name in ("routing", "include_stop", "ignore_eos"):
            _need(type(getattr(self, name)) is bool, name, getattr(self, name), "true or false")

    def _check_numbers(self) -> None:
        for f in fields(self):
            _set(self, f.name, _plain(getattr(self, f.name)))
        _whole("max_tokens", self.max_tokens, 0, None)
        _whole("min_tokens", self.min_tokens, 0, None)
        _need(
            self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, f"at most max_tokens {self.max_tokens}"
        )
        _whole("top_k", self.top_k, 0, None)
        _whole("n", self.n, 1, _MOST_SAMPLES)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0, _MOST_LOGPROBS)
        if self.seed is not None:
            _whole("seed", self.seed, -(1 << 63), (1 << 63) - 1)
        _number("temperature", self.temperature, "a finite number, 0 (greedy) or more", lambda v: v >= 0)
        for name in ("top_p", "typical_p"):
            _number(name, getattr(self, name), "above 0 and at most 1 (off)", lambda v: 0 < v <= 1)
        _number("min_p", self.min_p, "between 0 (off) and 1", lambda v: 0 <= v <= 1)
        _number("repetition_penalty", self.repetition_penalty, "a finite number above 0 (1 is off)", lambda v: v > 0)
        for name in ("presence_penalty", "frequency_penalty"):
            _number(name, getattr(self, name), "between -2 and 2 (0 is off)", lambda v: -2 <= v <= 2)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "SamplingParams":
        """From names and values; an unknown name is an error that names the nearest."""
        names = [f.name for f in fields(cls)]
        for name in values:
            if name not in names:
                raise RequestError(f"{name!r} is not a generation parameter{nearest(name, names)}")
        return cls(**values)

    def check_model(self, config: ModelConfig, n_prompt: int) -> None:
        """Ids below the vocabulary's size; prompt plus new tokens within the context (`ContextError`).

        First of all, the model can be used word by word: see `require_decoding`.
        """
        require_decoding(config)
        for name, ids in (("stop_token_ids", self.stop_token_ids), ("logit_bias", self.logit_bias or ())):
            for i in ids:
                _need(i < config.vocab_size, name, i, f"an id below the model's vocabulary of {config.vocab_size}")
        limit = config.max_position_embeddings
        if n_prompt + self.max_tokens <= limit:
            return
        room = limit - n_prompt
        fix = f"shorten the prompt or set max_tokens to at most {room}" if room > 0 else "shorten the prompt"
        raise ContextError(
            f"the prompt's {n_prompt} tokens plus max_tokens {self.max_tokens} make {n_prompt + self.max_tokens}, "
            f"but the model's context is {limit}: {fix}"
        )

    @property
    def is_plain_greedy(self) -> bool:
        """The next token is the argmax of the raw logits, and nothing else is asked for."""
        asks_more = self.changes_logits or self.logprobs is not None or self.min_tokens > 0
        return self.temperature == 0 and not asks_more

    @property
    def changes_logits(self) -> bool:
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty or self.logit_bias)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how to continue it. `context_ids` is what the reader has just seen (it decides on leading spaces);
    `stop` and `stop_token_ids` of a chat form are already in `params`.

    Requests begin from each other's cached prompts only where their `salt` is the same: they are of one owner, or have
    the same `cache_salt`, and edit experts alike.
    """

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    context_ids: tuple[int, ...] = field(default=())
    owner: str = ""  # whose it is: owners take turns
    wants_progress: bool = False  # events while the prompt is read
    grammar: Constraint | None = None  # the form that the text must have
    experts: ExpertEdits | None = None  # changes to the router for this request's tokens
    cache_salt: str = ""

    @property
    def salt(self) -> str:
        """Who may share what this request has read."""
        whose = f"salt {self.cache_salt}" if self.cache_salt else self.owner and f"owner {self.owner}"
        return whose if self.experts is None else f"{whose} {self.experts!r}"


def require_decoding(config: ModelConfig) -> None:
    """`RequestError` for a model whose router looks at later tokens, which are not there when text is generated."""
    if config.is_sparse and not config.router.can_decode:
        raise RequestError(
            f"the router {config.router.kind!r} of this model chooses experts by looking at later tokens too, so it "
            "can neither generate nor score text word by word: lm.logits(ids) reads a whole text at once"
        )


def check_text(text: object, what: str = "the prompt") -> str:
    """A str that UTF-8 can hold and that is not empty, else `RequestError`."""
    if isinstance(text, bytes | bytearray):
        raise RequestError(f"{what} is bytes, expected text: decode it first, for example with .decode('utf-8')")
    if not isinstance(text, str):
        raise RequestError(f"{what} is {_show(text)}, expected text or a list of token ids")
    if not text:
        raise RequestError(f"{what} is empty: give at least one character")
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise RequestError(f"{what} is not valid UTF-8 at character {e.start}: convert it first") from None
    return text


def check_ids(ids: object, vocab_size: int, what: str = "the prompt") -> tuple[int, ...]:
    """A non-empty sequence of ids of the vocabulary, else `RequestError`. A tensor of one dimension will do."""
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    if not isinstance(values, Sequence) or isinstance(values, str | bytes | bytearray):
        raise RequestError(f"{what} is {_show(ids)}, expected text or a list of token ids")
    if not values:
        raise RequestError(f"{what} is empty: give at least one token id")
    plain = tuple(i if type(i) is int else _plain(i) for i in values)
    for place, i in enumerate(plain):
        if type(i) is not int or not 0 <= i < vocab_size:
            raise RequestError(
                f"{what} has {_show(i)} at place {place}, expected a token id between 0 and {vocab_size - 1}"
            )
    return plain


def _set(params: SamplingParams, name: str, value: Any) -> None:
    object.__setattr__(params, name, value)


def _need(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise RequestError(f"{name} is {_show(value)}, expected {expected}")


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's; anything else as it is."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _whole(name: str, value: object, low: int, high: int | None) -> None:
    bound = f"of {low} or more" if high is None else f"between {low} and {high}"
    ok = type(value) is int and value >= low and (high is None or value <= high)
    _need(ok, name, value, f"a whole number {bound}")


def _number(name: str, value: object, expected: str, is_within: Any) -> None:
    ok = type(value) in (int, float) and _is_finite(value) and is_within(value)
    _need(ok, name, value, expected)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond float's range
        return False


def _list(name: str, value: object) -> list[Any]:
    if value is None:
        return []
    ok = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    _need(ok, name, value, "a list")
    assert isinstance(value, Sequence)
    return list(value)


def _strings(name: str, value: object) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else _list(name, value)
    for v in values:
        _need(isinstance(v, str) and v != "", name, v, "text of at least one character")
    return tuple(dict.fromkeys(values))


def _id(name: str, value: object) -> int:
    value = _plain(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:  # JSON's keys are text
        value = int(value)
    _need(type(value) is int and value >= 0, name, value, "a token id of 0 or more")
    assert isinstance(value, int)
    return value


def _bias(value: object) -> dict[int, float] | None:
    if value is None:
        return None
    _need(isinstance(value, Mapping), "logit_bias", value, "a table from token id to a number")
    assert isinstance(value, Mapping)
    bias = {}
    expected = f"between -{_LARGEST_BIAS:.0f} and {_LARGEST_BIAS:.0f}"
    for key, v in value.items():
        i, v = _id("logit_bias", key), _plain(v)
        _number(f"logit_bias of token {i}", v, expected, lambda x: abs(x) <= _LARGEST_BIAS)
        bias[i] = float(v)
    return bias or None

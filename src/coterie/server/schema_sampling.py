"""Fields that chat and text completions share, with OpenAI's, Mistral's and vLLM's names and bounds."""

from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict

from coterie.routing.edits import LARGEST_BIAS
from coterie.server.failures import refused
from coterie.server.schema import Body
from coterie.server.schema_fields import flag, items, number, one_of, opaque, table, text, texts, whole
from coterie.server.schema_forms import (
    CHOICE,
    FORMS,
    GRAMMAR,
    RESPONSE_FORMAT,
    SCHEMA,
    STRUCTURED,
    at_most_one,
    only_where,
)
from coterie.server.settings import Settings

__all__ = ["MOST_EDITS", "MOST_TOKENS", "SEED", "ExpertsField", "Sampled", "StreamOptions"]

MOST_TOKENS = (1 << 31) - 1
SEED = 1 << 63
_MOST_N = 128
MOST_EDITS = 4096  # of experts in a request


def _is_bias(key: str, value: Any) -> bool:
    is_id = key.isascii() and key.isdigit() and len(key) < 10
    return is_id and type(value) in (int, float) and -100 <= value <= 100


_BIAS = table(
    1024,
    "from a token id to a number between -100 and 100",
    _is_bias,
    {
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    },
)
_OBJECT = opaque(dict, "an object", {"type": "object"})
_VALUE = {"type": "number", "minimum": -LARGEST_BIAS, "maximum": LARGEST_BIAS}


def _edits(*more: dict[str, Any]) -> dict[str, Any]:
    """A list of [layer, expert] and more."""
    place = [{"type": "integer", "minimum": 0, "title": title} for title in ("a layer", "an expert")]
    entry = [*place, *more]
    each = {"type": "array", "prefixItems": entry, "minItems": len(entry), "maxItems": len(entry)}
    return {"type": "array", "items": each, "maxItems": MOST_EDITS}


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: Annotated[bool, flag()] | None = None
    continuous_usage_stats: Annotated[bool, flag()] | None = None


class ExpertsField(Body):
    """`experts`: what to change about routing, for study."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    ban: Annotated[list[Any], opaque(list, "a list of [layer, expert]", _edits())] | None = None
    bias: Annotated[list[Any], opaque(list, "a list of [layer, expert, value]", _edits(_VALUE))] | None = None
    top_k: Annotated[int, whole(1, 1 << 16).titled("experts a token")] | None = None


class Sampled(Body):
    """A request that is answered with text."""

    unread: ClassVar[tuple[str, ...]] = ("priority", "service_tier")
    between: ClassVar[tuple[dict[str, Any], ...]] = (
        only_where("stream", "stream_options", "stream_interval"),
        at_most_one(*FORMS),
    )

    model: Annotated[str, text(256)] | None = None
    stream: Annotated[bool, flag()] | None = None
    stream_options: StreamOptions | None = None
    stream_interval: Annotated[int, whole(1, 1024)] | None = None
    stop: Annotated[list[str], texts(16, 256)] | None = None
    stop_token_ids: Annotated[list[int], items(whole(0, MOST_TOKENS).titled("a token id"), 0, 64)] | None = None
    include_stop_str_in_output: Annotated[bool, flag()] | None = None
    ignore_eos: Annotated[bool, flag()] | None = None
    n: Annotated[int, whole(1, _MOST_N)] | None = None
    seed: Annotated[int, whole(-SEED, SEED - 1)] | None = None
    random_seed: Annotated[int, whole(0, SEED - 1)] | None = None
    temperature: Annotated[float, number(0, 2)] | None = None
    top_p: Annotated[float, number(0, 1, above=True)] | None = None
    top_k: Annotated[int, whole(-1, MOST_TOKENS)] | None = None
    min_p: Annotated[float, number(0, 1)] | None = None
    typical_p: Annotated[float, number(0, 1, above=True)] | None = None
    repetition_penalty: Annotated[float, number(0, 1e6, above=True)] | None = None
    presence_penalty: Annotated[float, number(-2, 2)] | None = None
    frequency_penalty: Annotated[float, number(-2, 2)] | None = None
    logit_bias: Annotated[dict[str, float], _BIAS] | None = None
    max_tokens: Annotated[int, whole(0, MOST_TOKENS)] | None = None
    min_tokens: Annotated[int, whole(0, MOST_TOKENS)] | None = None
    response_format: Annotated[dict[str, Any], opaque(dict, "an object", RESPONSE_FORMAT)] | None = None
    structured_outputs: Annotated[dict[str, Any], opaque(dict, "an object", STRUCTURED)] | None = None
    guided_json: Annotated[Any, SCHEMA] | None = None
    guided_regex: Annotated[Any, GRAMMAR] | None = None
    guided_choice: Annotated[Any, CHOICE] | None = None
    guided_grammar: Annotated[Any, GRAMMAR] | None = None
    grammar: Annotated[Any, GRAMMAR] | None = None
    json_schema: Annotated[Any, SCHEMA] | None = None
    return_routing: Annotated[Any, one_of(False, "final", "stream")] | None = None
    experts: ExpertsField | None = None
    return_token_ids: Annotated[bool, flag()] | None = None
    return_progress: Annotated[bool, flag()] | None = None
    timings: Annotated[bool, flag()] | None = None
    truncate: Annotated[Any, one_of(False, "middle")] | None = None
    user: Annotated[str, text(512)] | None = None
    metadata: Annotated[dict[str, Any], _OBJECT] | None = None
    request_id: Annotated[str, text(256)] | None = None
    priority: Annotated[int, whole(-MOST_TOKENS, MOST_TOKENS)] | None = None
    cache_salt: Annotated[str, text(256)] | None = None
    service_tier: Annotated[str, text(64)] | None = None

    @property
    def n_samples(self) -> int:
        return 1 if self.n is None else self.n

    def check(self, settings: Settings) -> None:
        """What depends on several fields, or on how the server was started. Raises `ApiError`."""
        if self.n_samples > settings.max_n:
            raise refused("n", f"n is {self.n}, expected a whole number between 1 and {settings.max_n}")
        for name in ("stream_options", "stream_interval"):
            if not self.stream and getattr(self, name) is not None:
                raise refused(name, f"{name} is given without a stream, expected it only where stream is true")
        if self.seed is not None and self.random_seed is not None and self.seed != self.random_seed:
            raise refused("random_seed", "random_seed and seed differ, expected only one of the two")
        if self.min_tokens and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            limit = f"at most max_tokens, which is {self.max_tokens}"
            raise refused("min_tokens", f"min_tokens is {self.min_tokens}, expected {limit}")

    def sampling(self) -> dict[str, Any]:
        """Arguments of `SamplingParams`, those that were given; `max_tokens` and `logprobs` are the route's."""
        given = {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_k": None if self.top_k == -1 else self.top_k,
            "seed": self.random_seed if self.seed is None else self.seed,
            "include_stop": self.include_stop_str_in_output or None,
            "ignore_eos": self.ignore_eos or None,
            "min_tokens": self.min_tokens or None,
            "typical_p": None if self.typical_p == 1 else self.typical_p,
            "routing": bool(self.return_routing),
            "n": self.n_samples,
        }
        same = ("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
        given |= {name: getattr(self, name) for name in (*same, "logit_bias", "stop", "stop_token_ids")}
        return {name: value for name, value in given.items() if value is not None}

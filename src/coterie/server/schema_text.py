"""Bodies of the routes that take text or token ids: completions, filling in, embeddings, tokenize, detokenize."""

from typing import Annotated, Any, ClassVar

from pydantic import WithJsonSchema

from coterie.server.failures import refused
from coterie.server.schema import Body
from coterie.server.schema_fields import Leaf, flag, items, one_of, opaque, text, whole
from coterie.server.schema_forms import exactly_one
from coterie.server.schema_messages import MESSAGES
from coterie.server.schema_sampling import MOST_TOKENS, Sampled
from coterie.server.settings import Settings

__all__ = ["CompletionBody", "DetokenizeBody", "EmbeddingBody", "FimBody", "TokenizeBody"]

_MOST_PROMPTS = 64
_MOST_CHARACTERS = 1 << 26  # the body's limit is tighter
_ID = whole(0, MOST_TOKENS).titled("a token id")
_TEXT = text(_MOST_CHARACTERS, 1)
_IDS = items(_ID, 1, MOST_TOKENS)


def _prompts(most: int) -> Leaf:
    """Text, ids, or a list of one of the two."""
    several = [items(_TEXT, 1, most), _IDS, items(_IDS, 1, most)]
    return Leaf(
        f"text, a list of token ids, or a list of at most {most} of one of the two, none of them empty",
        lambda v: _TEXT.fits(v) or any(kind.fits(v) for kind in several),
        {"anyOf": [_TEXT.schema, *(kind.schema for kind in several)]},
    )


class CompletionBody(Sampled):
    """POST /v1/completions."""

    unread: ClassVar[tuple[str, ...]] = Sampled.unread

    prompt: Annotated[Any, _prompts(_MOST_PROMPTS)]
    logprobs: Annotated[int, whole(0, 20)] | None = None
    best_of: Annotated[int, whole(1, 128)] | None = None
    max_tokens: Annotated[int, whole(1, MOST_TOKENS)] | None = None
    echo: Annotated[bool, flag(), WithJsonSchema({"const": False})] | None = None
    suffix: Annotated[str, text(_MOST_CHARACTERS), WithJsonSchema({"const": ""})] | None = None

    def check(self, settings: Settings) -> None:
        super().check(settings)
        best = self.n_samples if self.best_of is None else self.best_of
        if best > settings.max_n:
            raise refused("best_of", f"best_of is {best}, expected a whole number between 1 and {settings.max_n}")
        if best < self.n_samples:
            raise refused("best_of", f"best_of is {best}, expected at least n, which is {self.n_samples}")
        if self.stream and best > self.n_samples:
            raise refused("best_of", f"best_of is {best} in a stream, expected n, which is {self.n_samples}")
        if self.suffix:
            raise refused("suffix", "suffix is given, expected none: this model does not fill in the middle of a text")

    @property
    def prompts(self) -> list[Any]:
        """Each a text or a list of ids."""
        is_one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if is_one else list(self.prompt)


class FimBody(Body):
    """POST /v1/fim/completions, which needs tokens that no Mixtral has."""

    model: Annotated[str, text(256)] | None = None
    prompt: Annotated[str, text(_MOST_CHARACTERS)]
    suffix: Annotated[str, text(_MOST_CHARACTERS)] | None = None


class EmbeddingBody(Body):
    """POST /v1/embeddings: OpenAI's `input`, Mistral's `inputs`."""

    between: ClassVar[tuple[dict[str, Any], ...]] = (exactly_one("input", "inputs"),)

    model: Annotated[str, text(256)] | None = None
    input: Annotated[Any, _prompts(_MOST_PROMPTS)] | None = None
    inputs: Annotated[Any, _prompts(_MOST_PROMPTS)] | None = None
    encoding_format: Annotated[Any, one_of("float", "base64")] | None = None
    pooling: Annotated[Any, one_of("mean", "last")] | None = None
    dimensions: Annotated[int, whole(1, MOST_TOKENS)] | None = None
    output_dimension: Annotated[int, whole(1, MOST_TOKENS)] | None = None
    output_dtype: Annotated[Any, one_of("float")] | None = None
    user: Annotated[str, text(512)] | None = None
    metadata: Annotated[dict[str, Any], opaque(dict, "an object", {"type": "object"})] | None = None

    def check(self) -> None:
        if (self.input is None) == (self.inputs is None):
            given = "missing, but it is required" if self.input is None else "given beside inputs, expected one of them"
            raise refused("input", f"input is {given}")

    @property
    def texts(self) -> list[Any]:
        """Each a text or a list of ids."""
        given: Any = self.inputs if self.input is None else self.input
        is_one = isinstance(given, str) or isinstance(given[0], int)
        return [given] if is_one else list(given)


class TokenizeBody(Body):
    """POST /tokenize: vLLM's `prompt` or `messages`, llama-server's `content`."""

    between: ClassVar[tuple[dict[str, Any], ...]] = (exactly_one("prompt", "content", "messages"),)

    model: Annotated[str, text(256)] | None = None
    prompt: Annotated[str, text(_MOST_CHARACTERS)] | None = None
    content: Annotated[str, text(_MOST_CHARACTERS)] | None = None
    messages: Annotated[list[dict[str, Any]], MESSAGES] | None = None
    add_special_tokens: Annotated[bool, flag()] | None = None
    add_special: Annotated[bool, flag()] | None = None
    return_token_strs: Annotated[bool, flag()] | None = None
    with_pieces: Annotated[bool, flag()] | None = None
    add_generation_prompt: Annotated[bool, flag()] | None = None
    continue_final_message: Annotated[bool, flag()] | None = None

    def check(self) -> None:
        given = [name for name in ("prompt", "content", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            what = "missing" if not given else f"given beside {given[1]}"
            raise refused("prompt", f"prompt is {what}, expected exactly one of prompt, content and messages")


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: Annotated[str, text(256)] | None = None
    tokens: Annotated[list[int], items(_ID, 0, MOST_TOKENS)]

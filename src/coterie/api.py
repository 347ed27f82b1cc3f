"""`load(...) -> LanguageModel`: the one place that assembles checkpoint, tokenizer, model and engine.

    lm = coterie.load("path/to/folder")
    print(lm.generate("Il était une fois", max_tokens=40).text)

A folder without a tokenizer loads, and takes token ids wherever text is taken. Every call starts from an empty cache.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.checkpoint.hub import find_model
from coterie.checkpoint.load import load_model
from coterie.checkpoint.vocabulary import open_vocabulary
from coterie.config import ModelConfig
from coterie.engine.completion import Completion, Delta, Usage, collect, delta
from coterie.engine.engine import Engine
from coterie.engine.request import Request, SamplingParams, check_ids, check_text
from coterie.engine.runner import Runner
from coterie.engine.sampling import TokenLogprob
from coterie.engine.score import Score, encode_pair, score
from coterie.engine.trace import RoutingTrace, stack_routings
from coterie.errors import ContextError, RequestError, TokenizerError
from coterie.model import Transformer
from coterie.quant.report import PartBits, bits_of
from coterie.tokenizer import Tokenizer
from coterie.tokenizer.chat import ChatForm
from coterie.tokenizer.chat import chat_form as find_chat_form
from coterie.tokenizer.messages import read_messages

__all__ = [
    "Completion",
    "Delta",
    "LanguageModel",
    "RoutingTrace",
    "Score",
    "TokenLogprob",
    "Usage",
    "load",
    "open_model",
]

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


def load(
    source: str | Path | None = None, *, device: str = "auto", dtype: str = "auto", quantize: str | None = None
) -> "LanguageModel":
    """A model ready to use. `source`: None for the model that ships, a folder, a .gguf file, or "org/name" in the
    Hugging Face cache.

    `dtype` "auto" is the file's, but float32 where the CPU has no bf16 instructions; another one makes packed weights
    plain. `quantize` ("int8", "int6", "int5", "int4", "int3" or "int2") packs weights as they are read: the experts' to
    so many bits, others to 8; "fp8", for a GPU, takes a scale a row for all but the embedding.
    Raises `CheckpointError`, `ConfigError`, `TokenizerError`, `ResourceError` or `DownloadError`, each with what to do;
    nothing is downloaded.
    """
    return open_model(source, device=device, dtype=dtype, quantize=quantize)


def open_model(
    source: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    check: Callable[[ModelConfig, Tokenizer | None], None] = lambda config, tokenizer: None,
    quantize: str | None = None,
    note: Callable[[str], None] = lambda sentence: None,
) -> "LanguageModel":
    """What `load` does, telling `progress(bytes done, bytes in all)` on the way. `check` may raise before it begins.

    `note` is told beforehand what to expect of a model that memory does not hold.
    """
    path = find_model(source)
    tokenizer, chat_form = open_vocabulary(path)
    return LanguageModel(
        load_model(
            path,
            dtype=dtype,
            device=device,
            progress=progress,
            check=lambda config: check(config, tokenizer),
            quantize=quantize,
            note=note,
        ),
        tokenizer,
        chat_form,
        name=str(source or "demo"),
    )


class LanguageModel:
    """A model, its tokenizer and its chat form, all three handed in; the last two may be None."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None = None,
        chat_form: ChatForm | None = None,
        *,
        name: str = "model",
    ):
        self.model = model
        self.chat_form = chat_form
        self.name = name
        self._tokenizer = tokenizer

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises `TokenizerError` where the folder had none."""
        if self._tokenizer is None:
            raise TokenizerError(
                f"{self.name} has no tokenizer, so it takes token ids and no text: pass a list of ids, or put its "
                "tokenizer.model or tokenizer.json into the folder"
            )
        return self._tokenizer

    def bits(self) -> list[PartBits]:
        """The format, bits per weight and bytes of each part (attention, experts, ...), read off the loaded model."""
        return bits_of(self.model)

    @torch.inference_mode()
    def logits(self, ids: Prompt) -> Tensor:
        """float32 [T, V] on the CPU: row t is what the model expects after token t. A str is encoded with one BOS."""
        prompt = self._fitting_ids(ids)
        runner = Runner(self.model)
        return torch.cat([runner.logits(o.hidden_TD).float().cpu() for o in runner.feed_all(0, prompt)]).clone()

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: Sequence[int] | None = None,
        seed: int | None = None,
        n: int = 1,
        logprobs: int | None = None,
        routing: bool = False,
    ) -> Completion:
        """Continue a prompt: a str gets exactly one BOS, a list of ids is used as given.

        `logprobs`: how many alternatives to give beside each token's log-probability. Raises `RequestError`, and
        `ContextError` where prompt plus `max_tokens` do not fit the context. `docs/generation.md` explains each.
        """
        options = {name: value for name, value in locals().items() if name not in ("self", "prompt")}
        return self.generate_many([prompt], **options)[0]

    def generate_many(self, prompts: Sequence[Prompt], **options: Any) -> list[Completion]:
        """Continue several prompts, decoded together; the options are those of `generate`, for all of them."""
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise RequestError("prompts is not a list: pass a list of prompts, or call generate for a single one")
        params = SamplingParams.of(options)
        return self._complete([self.request(prompt, params) for prompt in prompts], params)

    def chat(self, messages: Sequence[Message], *, chat_form: str | None = None, **options: Any) -> Completion:
        """Answer a conversation of {"role", "content"}; the options are those of `generate`.

        `chat_form` names one of `coterie.tokenizer.chat.CHAT_FORMS` where the folder does not tell. A model that is not
        tuned for chat (`lm.chat_form` is None) continues the messages' text.
        """
        request = self.chat_request(messages, SamplingParams.of(options), chat_form)
        return self._complete([request], request.params)[0]

    def stream(
        self, prompt_or_messages: Prompt | Sequence[Message], *, chat_form: str | None = None, **options: Any
    ) -> Iterator[Delta]:
        """The same as `generate` or, given messages, as `chat`, as it comes. What is asked for is checked at once."""
        params = SamplingParams.of(options)
        if params.n != 1:
            raise RequestError(f"n is {params.n}, but a stream is of one sample: expected 1, or use generate")
        if _are_messages(prompt_or_messages):
            request = self.chat_request(prompt_or_messages, params, chat_form)  # type: ignore[arg-type]
        else:
            request = self.request(prompt_or_messages, params)  # type: ignore[arg-type]
        engine = Engine(self.model, self._tokenizer)
        return (delta(event) for event in engine.run(self._checked([request])))

    def score(self, context: Prompt, continuations: Sequence[Prompt]) -> list[Score]:
        """How likely each continuation is after the context, which is read once. An empty text is the BOS alone."""
        if isinstance(continuations, str) or not isinstance(continuations, Sequence):
            raise RequestError("continuations is not a list: pass a list of texts or of lists of ids")
        pairs = [self._encode_pair(context, c) for c in continuations]
        for context_ids, ids in pairs:
            self._check_context(len(context_ids) + len(ids))
        if not pairs:
            return []
        judged = score(Runner(self.model), pairs[0][0], [ids for _, ids in pairs])
        sizes = [self._n_bytes(c) for c in continuations]
        return [Score(lp, ok, len(ids), n) for (lp, ok), (_, ids), n in zip(judged, pairs, sizes, strict=True)]

    @torch.inference_mode()
    def route(self, text_or_ids: Prompt) -> RoutingTrace:
        """Which experts read each token, in every sparse layer. A dense model has none: [T, 0, 0]."""
        ids = self._fitting_ids(text_or_ids)
        outputs = Runner(self.model).feed_all(0, ids)
        return RoutingTrace.of(ids, [stack_routings(o.routings, len(o.hidden_TD)) for o in outputs])

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """The ids of a prompt as `generate` reads it, checked."""
        if isinstance(prompt, str) or not _are_ids(prompt):
            prompt = self.tokenizer.encode(check_text(prompt), bos=True)
        return check_ids(prompt, self.config.vocab_size)

    def request(self, prompt: Prompt, params: SamplingParams) -> Request:
        """What `generate` hands to an engine; whether it fits the context is not checked yet."""
        ids = self.encode(prompt)
        if params.stop:
            _ = self.tokenizer  # says that there is none
        return Request(ids, params, context_ids=ids)

    def chat_request(
        self,
        messages: Sequence[Message],
        params: SamplingParams,
        chat_form: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Request:
        """What `chat` hands to an engine: the stops of the chat form are added to those of `params`."""
        turns = read_messages(messages)
        form = self.chat_form if chat_form is None else find_chat_form(chat_form)
        if form is None:
            if tools or any(turn.tool_calls or turn.role == "tool" for turn in turns):
                raise RequestError("this model has no chat form, so it cannot call tools: leave tools out")
            return self.request("\n".join(turn.content for turn in turns), params)
        ids = check_ids(form.encode(turns, self.tokenizer, tools), self.config.vocab_size)
        stop = tuple(dict.fromkeys((*params.stop, *form.stop_strings)))
        stop_ids = tuple(dict.fromkeys((*params.stop_token_ids, *form.stop_ids(self.tokenizer))))
        context = ids if turns[-1].prefix else ()  # an answer begins anew, a continued one keeps its space
        return Request(ids, replace(params, stop=stop, stop_token_ids=stop_ids), context)

    def _complete(self, requests: list[Request], params: SamplingParams) -> list[Completion]:
        engine = Engine(self.model, self._tokenizer)
        events = engine.run(self._checked(requests))
        n_prompts = [len(r.prompt_ids) for r in requests]
        return collect(events, n_prompts, params.n, params.logprobs is not None, params.routing)

    def _checked(self, requests: list[Request]) -> list[Request]:
        for r in requests:
            r.params.check_model(self.config, len(r.prompt_ids))
        return requests

    def _fitting_ids(self, prompt: Prompt) -> tuple[int, ...]:
        ids = self.encode(prompt)
        self._check_context(len(ids))
        return ids

    def _check_context(self, n: int) -> None:
        limit = self.config.max_position_embeddings
        if n > limit:
            raise ContextError(f"the text is {n} tokens, but the model's context is {limit}: shorten it")

    def _encode_pair(self, context: Prompt, continuation: Prompt) -> tuple[tuple[int, ...], tuple[int, ...]]:
        V = self.config.vocab_size
        if isinstance(context, str) and isinstance(continuation, str):
            check_text(continuation, "a continuation")
            context_ids, ids = encode_pair(self.tokenizer, context and check_text(context, "the context"), continuation)
            return check_ids(context_ids, V, "the context"), check_ids(ids, V, "a continuation")
        if isinstance(context, str) or isinstance(continuation, str):
            raise RequestError("context and continuations mix text and token ids: pass all of them as one of the two")
        return check_ids(context, V, "the context"), check_ids(continuation, V, "a continuation")

    def _n_bytes(self, continuation: Prompt) -> int:
        if isinstance(continuation, str):
            return len(continuation.encode())
        return 0 if self._tokenizer is None else len(self._tokenizer.decode(list(continuation)).encode())


def _are_ids(prompt: object) -> bool:
    return hasattr(prompt, "tolist") or (
        isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes | bytearray)
    )


def _are_messages(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)

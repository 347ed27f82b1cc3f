"""`CoterieLM`: a coterie model as lm-evaluation-harness sees one; `coterie.eval.harness` registers it.

Its answers are those of the harness's own transformers model on the same weights, quirks included: a text that begins
with the BOS's spelling gets no second one; too long a context loses its beginning, BOS first; an answer is decoded by
itself; and the rolling likelihood of a text whose tokenizer writes a BOS scores that BOS as well, after another one
(`rolling_bos="once"` leaves it out). What it does not take over is the work: contexts that are alike are read once, and
the `batch_size` is not needed, since passes are filled by tokens and no answer depends on what it is computed with.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.api.model import LM
from tqdm import tqdm

from coterie.api import LanguageModel, load
from coterie.engine.score import encode_pair
from coterie.errors import ContextError, RequestError
from coterie.eval.scorer import Pair, Scorer, fit
from coterie.sizes import parameters
from coterie.tokenizer import chat_form

__all__ = ["CoterieLM"]

_MAX_TOKENS = 256  # of an answer, where the task names none
_TOGETHER = 64  # prompts handed to the engine at a time
_ALIASES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class CoterieLM(LM):  # type: ignore[misc]  # lm_eval has no types
    """`--model coterie --model_args pretrained=demo,dtype=float32`; `pretrained` may also be a loaded model."""

    def __init__(
        self,
        pretrained: str | LanguageModel = "demo",
        *,
        device: str = "auto",
        dtype: str = "auto",
        quantize: str | None = None,
        max_length: int | None = None,
        chat_form: str | None = None,
        rolling_bos: str = "lm-eval",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ):
        super().__init__()
        if rolling_bos not in ("lm-eval", "once"):
            raise RequestError(f"rolling_bos is {rolling_bos!r}, expected 'lm-eval' or 'once'")
        if device.startswith("cuda") and not torch.cuda.is_available():
            device = "auto"  # the harness's command line says cuda:0 where nobody said anything
        self.lm = (
            pretrained
            if isinstance(pretrained, LanguageModel)
            else load(pretrained, device=device, dtype=dtype, quantize=quantize)
        )
        self._tokenizer = self.lm.tokenizer
        context = self.lm.config.max_position_embeddings
        self.max_length = min(max_length or context, context)
        self._chat_form, self._rolling_bos, self._progress = chat_form, rolling_bos, progress
        self._conversations: dict[str, list[int]] = {}  # ids by the text that stands for them
        self._device = self.lm.model.device

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, is greedy) of each continuation after its context."""
        pairs = [self._pair(*request.args) for request in requests]

        def remember(place: int, answer: tuple[float, bool]) -> None:
            self.cache_hook.add_partial("loglikelihood", requests[place].args, answer)

        return self._score(pairs, "loglikelihood", disable_tqdm, remember)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text, every token scored once, in windows of the whole context."""
        windows = [list(self._windows(request.args[0])) for request in requests]
        judged = iter(self._score([w for parts in windows for w in parts], "rolling loglikelihood", disable_tqdm))
        sums = [float(sum(next(judged)[0] for _ in parts)) for parts in windows]
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text written after each context, up to the first of its stop strings."""
        answers = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(place)
        with self._bar("generate_until", len(requests), disable_tqdm) as advance:
            for places in groups.values():
                places.sort(key=lambda place: len(requests[place].args[0]))
                for start in range(0, len(places), _TOGETHER):
                    chunk = [(place, requests[place].args) for place in places[start : start + _TOGETHER]]
                    texts = self._generate([args[0] for _, args in chunk], chunk[0][1][1])
                    for (place, args), text in zip(chunk, texts, strict=True):
                        answers[place] = text
                        self.cache_hook.add_partial("generate_until", args, text)
                    advance(len(chunk))
        return answers

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text with one BOS (or none where that is asked), however it begins."""
        bos_id = self._tokenizer.bos_id
        if add_special_tokens is None and bos_id is not None:
            string = string.removeprefix(self._tokenizer.piece(bos_id))
        return self._tokenizer.encode(string, bos=add_special_tokens is not False)

    @property
    def eot_token_id(self) -> int | None:
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int | None:
        """What stands before a text that nothing else precedes."""
        bos_id = self._tokenizer.bos_id
        return self._tokenizer.eos_id if bos_id is None else bos_id

    @property
    def tokenizer_name(self) -> str:
        return self.lm.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The name of the form in which conversations are written; forms are code here, not templates."""
        return self._form().name if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A text that stands for the conversation: its ids are kept, so no mark typed by a user becomes one."""
        turns: list[dict[str, Any]] = [dict(turn) for turn in chat_history]
        if not add_generation_prompt:
            turns[-1]["prefix"] = True
        ids = self._form().encode(turns, self._tokenizer)
        text = "".join(self._tokenizer.piece(i) for i in ids)
        self._conversations[text] = ids
        return text

    def get_model_info(self) -> dict[str, Any]:
        return {"model_num_parameters": parameters(self.lm.config).total, "model_dtype": str(self.lm.model.dtype)}

    def _form(self) -> Any:
        form = self.lm.chat_form if self._chat_form is None else chat_form(self._chat_form)
        if form is None:
            raise RequestError(
                f"nothing says in which form {self.lm.name} holds conversations; "
                "name one in model_args: chat_form=mistral-v1, or leave out the chat template"
            )
        return form

    def _context(self, text: str) -> list[int]:
        known = self._conversations.get(text)
        return self.tok_encode(text) if known is None else list(known)

    def _pair(self, context: str, continuation: str) -> Pair:
        """Context and continuation as the model reads them: no longer together than it can read."""
        if context in self._conversations:
            context_ids, ids = self._context(context), self._tokenizer.encode(continuation)
        else:
            bos_id = self._tokenizer.bos_id
            spelled = "" if bos_id is None else self._tokenizer.piece(bos_id)
            context_ids, ids = encode_pair(self._tokenizer, context.removeprefix(spelled), continuation)
        if not ids:
            raise RequestError(f"the continuation {continuation!r} has no tokens; expected at least one")
        return fit(context_ids, ids, self.max_length)[0], ids

    def _windows(self, text: str) -> Iterator[Pair]:
        """Contexts and continuations that score each token once, the last with as much context as fits.

        Example, a context of 4 and tokens 0..9: [bos] [0 1 2 3], [3] [4 5 6 7], [5 6 7] [8 9].
        """
        ids = self.tok_encode(text, False if self._rolling_bos == "once" else None)
        prefix, W = self.prefix_token_id, self.max_length
        assert prefix is not None
        for start in range(0, len(ids), W):
            stop = min(start + W, len(ids))
            yield ([prefix], ids[:stop]) if start == 0 else (ids[stop - W - 1 : start], ids[start:stop])

    def _score(
        self,
        pairs: Sequence[Pair],
        title: str,
        is_quiet: bool,
        remember: Callable[[int, tuple[float, bool]], None] = lambda place, answer: None,
    ) -> list[tuple[float, bool]]:
        with self._bar(title, len(pairs), is_quiet) as advance:

            def done(place: int, logprob: float, is_greedy: bool) -> None:
                remember(place, (logprob, is_greedy))
                advance(1)

            return Scorer(self.lm.model).score(pairs, done=done)

    @contextmanager
    def _bar(self, title: str, total: int, is_quiet: bool) -> Iterator[Callable[[int], None]]:
        """Steps told to who asked for them, else to the harness's kind of bar."""
        n_done = 0

        def tell(n: int) -> None:
            nonlocal n_done
            n_done += n
            if self._progress is not None:
                self._progress(title, n_done, total)

        if self._progress is not None:
            yield tell
            return
        with tqdm(total=total, desc=title, disable=is_quiet) as bar:
            yield bar.update

    @torch.inference_mode()
    def _generate(self, contexts: Sequence[str], asked: dict[str, Any]) -> list[str]:
        options, stops = self._options(asked)
        room = self.max_length - options["max_tokens"]
        if room < 1:
            raise ContextError(
                f"the task asks for answers of {options['max_tokens']} tokens, but the model's context is "
                f"{self.max_length}: set max_gen_toks below it, for example --gen_kwargs max_gen_toks={_MAX_TOKENS}"
            )
        prompts = [self._context(context)[-room:] for context in contexts]
        done = self.lm.generate_many(prompts, stop=stops, **options)
        return [self._text(completion.token_ids, stops) for completion in done]

    def _options(self, asked: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The options of `generate` and the stop strings for a task's `generation_kwargs`."""
        options = dict(asked)
        until = options.pop("until", None) or []
        stops = [s for s in ([until] if isinstance(until, str) else until) if s]
        eos_id = self._tokenizer.eos_id
        if eos_id is not None and (spelled := self._tokenizer.piece(eos_id)) not in stops:
            stops.append(spelled)
        lengths = [n for n in (options.pop(alias, None) for alias in _ALIASES) if n is not None]
        options["max_tokens"] = int(lengths[0]) if lengths else _MAX_TOKENS
        samples = options.pop("do_sample", None)
        options["temperature"] = 0.0 if samples is False else float(options.get("temperature", 1.0 if samples else 0.0))
        return options, stops

    def _text(self, ids: Sequence[int], stops: Sequence[str]) -> str:
        text = self._tokenizer.decode(ids)
        for stop in stops:
            text = text.partition(stop)[0]
        return text

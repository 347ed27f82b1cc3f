"""Text that must have a form: a JSON schema, a regular expression, a list of choices, a grammar (structured output).

`Grammar.compile` checks what people wrote and gives a grammar that requests share; each sample follows it with a
`Matcher` of its own, which strikes out the tokens that do not fit, so the model chooses among the others. llguidance
does the parsing (Earley over a lexer of derivatives); every number that it may reach is bounded here.

Two things surprise. A SentencePiece answer begins with `▁`, which is not in the text that the reader sees: where a text
begins anew, the first token may be one that loses its space, and is then followed as a space before the form (`▁yes` is
`yes`; the byte piece `<0x20>` is a space that stays). And a compilation that takes too long cannot
be stopped, only abandoned: it goes on in its thread, without the interpreter's lock, until llguidance's own limits end
it (seconds), and at most two run at a time.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits
from numpy.typing import NDArray
from torch import Tensor

from coterie.engine.grammar_budget import within
from coterie.engine.grammar_limits import KINDS, sentence
from coterie.engine.grammar_source import Source, read_source
from coterie.engine.grammar_vocabulary import Vocabulary, vocabulary_of
from coterie.errors import RequestError
from coterie.tokenizer import Tokenizer

__all__ = ["COMPILE_SECONDS", "KINDS", "Grammar", "Matcher"]

COMPILE_SECONDS = 2.0
_SLOWEST_MASK = 1.0  # seconds; a step takes 0.05 ms, and one that takes this long holds up everybody


class Grammar:
    """A compiled form, immutable and shared by requests; see `compile`."""

    def __init__(self, source: Source, vocabulary: Vocabulary, plain: LLMatcher, spaced: LLMatcher | None):
        self.kind = source.kind
        self.n_bytes = source.n_bytes
        self._vocabulary = vocabulary
        self._plain, self._spaced = plain, spaced

    @staticmethod
    def compile(kind: str, spec: Any, tokenizer: Tokenizer, *, seconds: float = COMPILE_SECONDS) -> "Grammar":
        """The grammar of `spec`: a schema (dict, bool, JSON text) for "json_schema", None for "json_object", a list of
        texts for "choice", text for "regex", "lark", "gbnf" and "grammar" (Lark or GBNF, whichever it is).

        Raises `RequestError`, one sentence: a limit, what does not parse, or that it takes more than `seconds`. Waits
        for another thread, so an event loop calls it in a thread. What was compiled lately is kept, by tokenizer.
        """
        source = read_source(kind, spec)
        vocabulary = vocabulary_of(tokenizer)
        known = vocabulary.grammars.get((source.kind, source.text))
        if isinstance(known, Grammar):
            return known
        grammar = within(seconds, lambda: _compile(source, vocabulary))
        vocabulary.grammars.put((source.kind, source.text), grammar, grammar.n_bytes)
        return grammar

    def matcher(self, context_ids: Sequence[int] = (), end_ids: Iterable[int] = ()) -> "Matcher":
        """One for each sample. `context_ids`: what the reader has just seen (`Request.context_ids`); `end_ids`: what
        ends an answer beside the tokenizer's own end (a chat form's `<|im_end|>`)."""
        begins = self._spaced is not None and self._vocabulary.drops_space_after(context_ids)
        spaced = self._spaced.deep_copy() if begins and self._spaced is not None else None
        return Matcher(self._plain.deep_copy(), spaced, self._vocabulary, end_ids)


class Matcher:
    """Where one sample is in its grammar. Any method may raise `RequestError`: then this sample cannot go on.

    `spaced` follows the form after a space; it is there until the first token says which of the two it is.
    """

    def __init__(
        self, matcher: LLMatcher, spaced: LLMatcher | None, vocabulary: Vocabulary, end_ids: Iterable[int] = ()
    ):
        self._matcher, self._spaced, self._vocabulary = matcher, spaced, vocabulary
        ends = {vocabulary.eos_id, *end_ids}
        self._end_ids = tuple(sorted(i for i in ends if 0 <= i < vocabulary.n_tokens))
        self._has_ended = False

    @property
    def is_done(self) -> bool:
        """Nothing may follow but the end, so the sample can stop without asking for it."""
        return self._has_ended or self._matcher.is_stopped()

    def copy(self) -> "Matcher":
        """Another one at the same place."""
        spaced = None if self._spaced is None else self._spaced.deep_copy()
        other = Matcher(self._matcher.deep_copy(), spaced, self._vocabulary, self._end_ids)
        other._has_ended = self._has_ended
        return other

    def mask_(self, logits_V: Tensor) -> None:
        """Make the logits of all tokens that do not fit −inf, in place. V may be padded past the tokenizer's ids."""
        n = min(len(logits_V), self._vocabulary.n_tokens)
        is_out_V = torch.from_numpy(np.unpackbits(~self._packed(), count=n, bitorder="little").view(np.bool_))
        logits_V[:n].masked_fill_(is_out_V.to(logits_V.device), -torch.inf)
        logits_V[n:] = -torch.inf

    def allowed(self) -> Tensor:
        """bool [V], V the tokenizer's size: the tokens that may come next."""
        n = self._vocabulary.n_tokens
        return torch.from_numpy(np.unpackbits(self._packed(), count=n, bitorder="little").view(np.bool_))

    def accept(self, token_id: int) -> None:
        """Go on past this token, which must be one that fits; an end id ends the text."""
        if token_id in self._end_ids:
            self._has_ended = True
            return
        if self._spaced is not None:
            self._matcher = self._spaced if self._vocabulary.drops_space(token_id) else self._matcher
            self._spaced = None
        if not (self.is_done or self._matcher.consume_token(token_id)):
            raise RequestError(f"token {token_id} does not fit the grammar at this place")

    def _packed(self) -> NDArray[np.uint8]:
        """One bit for each token, lowest first: text that fits, and the ends where the text may end."""
        may_end = self._has_ended
        if may_end:
            packed = np.zeros_like(self._vocabulary.is_text_packed)
        else:
            packed, may_end = self._mask(self._matcher)
            if self._spaced is not None:
                drops = self._vocabulary.drops_packed
                packed = packed & ~drops | self._mask(self._spaced)[0] & drops
        for i in self._end_ids if may_end else ():
            packed[i >> 3] |= 1 << (i & 7)
        if not may_end and not packed.any():
            raise RequestError("no token of the vocabulary fits the grammar at this place")
        return packed

    def _mask(self, matcher: LLMatcher) -> tuple[NDArray[np.uint8], bool]:
        """The text tokens that `matcher` allows, and whether the text may end."""
        vocabulary = self._vocabulary
        began = time.perf_counter()
        found = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error() or time.perf_counter() - began > _SLOWEST_MASK:
            raise RequestError("the grammar is too complex to follow here: make it smaller or more regular")
        eos = vocabulary.eos_id
        may_end = bool(found[eos >> 3] >> (eos & 7) & 1) and matcher.is_accepting()
        return found[: len(vocabulary.is_text_packed)] & vocabulary.is_text_packed, may_end


def _compile(source: Source, vocabulary: Vocabulary) -> Grammar:
    """Both ways to begin; the first mask is computed here, as it shows what building alone does not."""
    plain = _build(source.grammar(space=False), source, vocabulary)
    can_drop = bool(vocabulary.drops_packed.any())
    spaced = _build(source.grammar(space=True), source, vocabulary) if can_drop else None
    Matcher(plain.deep_copy(), None, vocabulary).allowed()  # raises where no token fits
    return Grammar(source, vocabulary, plain, spaced)


def _build(grammar: str, source: Source, vocabulary: Vocabulary) -> LLMatcher:
    limits = LLParserLimits(
        max_items_in_row=5000,  # an object with 1,000 optional properties has 4,007
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=100_000,
        step_max_items=50_000,
        max_lexer_states=10_000,  # 1 to 2 KB each, of each sample
        max_grammar_size=200_000,
        verbose_errors=False,
    )
    matcher = LLMatcher(vocabulary.tokenizer, grammar, log_level=0, limits=limits)
    if matcher.is_error():
        raise RequestError(f"the {source.name} cannot be followed: {sentence(matcher.get_error())}")
    matcher.compute_bitmask()
    if matcher.is_error():
        raise RequestError(f"the {source.name} matches nothing, or is too complex: make it smaller or more regular")
    return matcher

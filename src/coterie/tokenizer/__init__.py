"""Text in, ids out: SentencePiece, tekken and tokenizer.json behind one protocol; chat forms; streamed text."""

from coterie.tokenizer.load import load_tokenizer, tokenizer_files
from coterie.tokenizer.protocol import Tokenizer
from coterie.tokenizer.stream import TextStream

__all__ = ["TextStream", "Tokenizer", "load_tokenizer", "tokenizer_files"]

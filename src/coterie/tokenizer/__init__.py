"""Text in, ids out: SentencePiece, tekken and tokenizer.json behind one protocol; chat forms; streamed text."""

from coterie.tokenizer.chat import CHAT_FORMS, ChatForm, Message, chat_form, detect_chat_form
from coterie.tokenizer.load import load_tokenizer, tokenizer_files
from coterie.tokenizer.protocol import Tokenizer
from coterie.tokenizer.stream import TextStream

__all__ = [
    "CHAT_FORMS",
    "ChatForm",
    "Message",
    "TextStream",
    "Tokenizer",
    "chat_form",
    "detect_chat_form",
    "load_tokenizer",
    "tokenizer_files",
]

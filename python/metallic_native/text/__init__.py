"""Text in and out: tokenizer, chat templates, streaming detokeniser and stop strings."""

from .chat_template import ChatTemplate
from .detokenizer import StopMatcher, StreamingDetokenizer
from .tokenizer import Tokenizer
from .vocabulary import SpecialTokens, TokenType

__all__ = ["ChatTemplate", "SpecialTokens", "StopMatcher", "StreamingDetokenizer", "TokenType", "Tokenizer"]

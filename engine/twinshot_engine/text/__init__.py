"""Text encoders: from prompts to embeddings."""

from twinshot_engine.text.cache import CacheStatistics, Caption, CaptionCache
from twinshot_engine.text.prompt import ChatTokenizer, PromptTokenizer, Tokens
from twinshot_engine.text.qwen3 import Qwen3Encoder

__all__ = [
    "CacheStatistics",
    "Caption",
    "CaptionCache",
    "ChatTokenizer",
    "PromptTokenizer",
    "Qwen3Encoder",
    "Tokens",
]

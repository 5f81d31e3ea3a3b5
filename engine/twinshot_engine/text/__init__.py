"""Text encoders: from prompts to embeddings."""

from twinshot_engine.text.cache import CacheStatistics, CaptionCache
from twinshot_engine.text.prompt import PromptTokenizer, Tokens
from twinshot_engine.text.qwen3 import Qwen3Encoder

__all__ = ["CacheStatistics", "CaptionCache", "PromptTokenizer", "Qwen3Encoder", "Tokens"]

"""Text encoders: from prompts to embeddings."""

from twinshot_engine.text.qwen3 import TextEmbeddings, TextEncoder

__all__ = ["TextEmbeddings", "TextEncoder"]

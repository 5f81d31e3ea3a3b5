"""Adapters: low-rank updates (LoRA) of a transformer, merged as it is read or switched while it serves."""

from twinshot_engine.adapter_source import AdapterSource
from twinshot_engine.lora.adapters import Adapters
from twinshot_engine.lora.low_rank import LowRank
from twinshot_engine.lora.reading import Lora, find_lora

__all__ = ["AdapterSource", "Adapters", "Lora", "LowRank", "find_lora"]

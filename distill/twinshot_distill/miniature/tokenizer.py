"""The miniature's tokenizer: a small byte-level BPE with Qwen3's chat template.

Same kind as the full models' (bytes, so no text is unknown; `<|im_start|>` turns), trained on the
world's own captions in English and Chinese. Text is lower-cased first: a vocabulary this small has no room
for case.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from twinshot_distill.world.captions import caption
from twinshot_distill.world.scenes import TASKS, sample_scene
from twinshot_distill.world.vocabulary import CHINESE_COLORS, OBJECTS

VOCABULARY_SIZE = 2560
LONGEST = 64
PAD, TURN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CORPUS_CAPTIONS = 40_000


def _corpus() -> Iterator[str]:
    rng = Random("tokenizer")
    yield "user\n"
    yield "assistant\n"
    for entry in OBJECTS:
        yield from (entry.name, entry.plural, entry.chinese, *entry.synonyms, *entry.near)
    for index in range(_CORPUS_CAPTIONS):
        scene = sample_scene(rng, TASKS[index % len(TASKS)], "train")
        yield caption(rng, scene, wordy=index % 8 == 0)


def _chinese_hinges() -> str:
    """A pattern of what stands between Chinese nouns: numbers, measure words, colours, sides and particles.

    Nothing separates Chinese words, so merges would reach across them and a noun's tokens would depend on its
    neighbours. These characters are tokens of their own, and a noun is the same tokens everywhere.
    """
    measures = {entry.measure for entry in OBJECTS}
    alone = "".join(sorted(measures | set(CHINESE_COLORS.values()) | set("一两三四的色在和与跟位画看有是")))
    return f"色的|[上下左右][边侧面方]|[{alone}]"


def build_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Train the tokenizer (a few seconds, deterministic) and save it to `folder`."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_chinese_hinges()), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, TURN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, model_max_length=LONGEST, padding_side="right"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    # Less than half as long as what transformers writes; it travels with every clone.
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    return tokenizer


def templated(prompt: str) -> str:
    """A prompt as the text encoder reads it: one user turn and an open assistant turn."""
    return f"{TURN}user\n{prompt}{END}\n{TURN}assistant\n"

"""English nouns: several of them, and the article before one."""

from __future__ import annotations

_IRREGULAR = {
    "goose": "geese",
    "leaf": "leaves",
    "knife": "knives",
    "wolf": "wolves",
    "loaf": "loaves",
    "calf": "calves",
    "moose": "moose",
    "bison": "bison",
    "ox": "oxen",
    "reindeer": "reindeer",
    "squid": "squid",
    "mouse": "mice",
}
_MASS = ("bread", "cheese", "corn", "popcorn", "yarn", "money", "luggage", "tea", "coffee", "soup")
"""Words without an article or a plural."""


def plural_of(noun: str) -> str:
    """Say several of a thing: "wolves", "glasses of wine", "kitchen knives"; plurals stay as they are."""
    first, of, rest = noun.partition(" of ")
    before, gap, word = first.rpartition(" ")
    return f"{before}{gap}{_plural_word(word)}{of}{rest}"


def _plural_word(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _MASS or (word.endswith("s") and not word.endswith(("ss", "us"))):
        return word
    if word.endswith("y") and word[-2] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("ch", "sh", "x", "ss", "us")) else f"{word}s"


def with_article(phrase: str) -> str:
    """Say "an apple" and "a dog", but "bread"; the exceptions are spoken, not spelled ("a unicorn")."""
    if phrase.rpartition(" ")[2] in _MASS and " of " not in phrase:
        return phrase
    vowel = phrase[0] in "aeiou" and not phrase.startswith(("uni", "one", "ufo"))
    return f"{'an' if vowel else 'a'} {phrase}"

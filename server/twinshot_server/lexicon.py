"""What a narrow model was never taught: which words of a prompt, and what it draws in their place.

A checkpoint's card lists the words it knows and, for others, the known thing that is most alike. A word that
is neither may be a misspelling of one of them. Whatever has something known in its place is drawn as that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from twinshot_engine.types import EngineInfo
from twinshot_server.answers import UnknownWord
from twinshot_server.everyday import CHINESE, ENGLISH

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_PIECES = re.compile(
    f"(?P<han>(?:[A-Za-z](?=[{_HAN}]))?[{_HAN}]+)|(?P<word>[^\\W_{_HAN}](?:[^\\W{_HAN}]|['\u2019-])*)"
)
_LONGEST_PHRASE = 3
_LONGEST_HAN = 8
_LEAST_LETTERS, _MOST_LETTERS = 5, 30
"""Shorter words have too many neighbours to be taken for misspellings, and longer ones are none."""

_ARTICLE = re.compile(r"(?<!\w)([Aa])n? $")
_CACHED = 1024
_PLURALS = (
    *((re.compile("(?<!s)s$"), ""), (re.compile("(?<!es)es$"), ""), (re.compile("ies$"), "y")),
    *((re.compile("ves$"), "fe"), (re.compile("ves$"), "f"), (re.compile("^dice$"), "die")),
    *((re.compile("men$"), "man"), (re.compile("mice$"), "mouse"), (re.compile("i$"), "us")),
    (re.compile("['\u2019]s?$"), ""),
)


@dataclass(frozen=True, slots=True)
class Reading:
    """A prompt as the model gets it, and the words in it that were replaced or that nothing is known for."""

    prompt: str
    unknown: tuple[UnknownWord, ...] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    """A word or phrase that is not known, where it stands, and what stands in for it."""

    start: int
    end: int
    instead: str | None


class Lexicon:
    """The words of one checkpoint; one without a vocabulary is a general model, and knows every word."""

    def __init__(self, vocabulary: Mapping[str, Any], near: Mapping[str, str]) -> None:
        self._phrases = {phrase.lower() for kind in vocabulary.values() for phrase in phrases_of(kind)}
        self._near = {word.lower(): instead for word, instead in near.items()}
        self._words = {match[0] for phrase in self._phrases for match in _PIECES.finditer(phrase)}
        speaks_chinese = any(re.match(f"[{_HAN}]", phrase) for phrase in self._phrases)
        colors = {phrase[:-1] for phrase in self._phrases if phrase.endswith("色")}
        self._han = self._phrases | colors | (CHINESE if speaks_chinese else frozenset())
        self._misspelt = _misspellings({word: word for word in self._words | ENGLISH} | self._near)
        self.read: Callable[[str], Reading] = lru_cache(_CACHED)(self._read)

    def _read(self, prompt: str) -> Reading:
        """Find the words of a prompt that are not known, and put what is nearest in their places."""
        if not self._phrases:
            return Reading(prompt)
        found = list(self._unknown(prompt))
        drawn, at = "", 0
        for each in found:
            if each.instead:
                drawn = _put(drawn + prompt[at : each.start], each.instead, prompt[each.start])
                at = each.end
        words = {prompt[each.start : each.end]: each.instead for each in found}
        unknown = tuple(UnknownWord(word=word, nearest=instead) for word, instead in words.items())
        return Reading((drawn + prompt[at:]).rstrip() if drawn else prompt, unknown)

    def _unknown(self, prompt: str) -> Iterator[_Found]:
        pieces = list(_PIECES.finditer(prompt))
        at = 0
        while at < len(pieces):
            if pieces[at]["han"]:
                yield from self._unknown_han(pieces[at].start(), pieces[at][0].lower())
                at += 1
                continue
            count, found = self._phrase(prompt, pieces[at : at + _LONGEST_PHRASE])
            if found is not None:
                yield found
            at += count

    def _phrase(self, prompt: str, pieces: list[re.Match[str]]) -> tuple[int, _Found | None]:
        """How many words the longest known or near phrase has, and where it is if it is not known."""
        first = pieces[0]
        for count in range(len(pieces), 0, -1):
            last = pieces[count - 1]
            phrase = " ".join(prompt[first.start() : last.end()].lower().split())
            if phrase in ENGLISH or any(form in self._phrases for form in _singulars(phrase)):
                return count, None
            for form in _singulars(phrase):
                if form in self._near:
                    return count, _Found(first.start(), last.end(), self._near[form])
        word = first[0].lower()
        if any(form in self._words or form in ENGLISH for form in _singulars(word)):
            return 1, None
        return 1, _Found(first.start(), first.end(), self._spelt_like(word))

    def _unknown_han(self, start: int, run: str) -> Iterator[_Found]:
        """The same for Chinese, which has no spaces: the longest word at each place is taken."""
        at = strange = 0
        while at < len(run):
            word = next(
                (run[at : at + n] for n in range(_LONGEST_HAN, 0, -1) if self._has_han(run[at : at + n])), ""
            )
            if word and strange < at:
                yield _Found(start + strange, start + at, None)
            if word in self._near and word not in self._han:
                yield _Found(start + at, start + at + len(word), self._near[word])
            at += len(word) or 1
            strange = at if word else strange
        if strange < at:
            yield _Found(start + strange, start + at, None)

    def _has_han(self, word: str) -> bool:
        return word in self._han or word in self._near

    def _spelt_like(self, word: str) -> str | None:
        """The word that this may be a misspelling of: one letter more, less, other, or two swapped."""
        if not _LEAST_LETTERS <= len(word) <= _MOST_LETTERS:
            return None
        return next((self._misspelt[form] for form in _deletions(word) if form in self._misspelt), None)


class Lexicons:
    """Keeps the lexicon of the checkpoint that is loaded."""

    def __init__(self) -> None:
        self._info: EngineInfo | None = None
        self._lexicon = Lexicon({}, {})

    def read(self, info: EngineInfo, prompt: str) -> Reading:
        """Read a prompt as the checkpoint does that `info` tells of."""
        if info is not self._info:
            self._info, self._lexicon = info, Lexicon(info.vocabulary, info.near)
        return self._lexicon.read(prompt)


def phrases_of(kind: object) -> list[str]:
    """The phrases of one kind of a vocabulary: a list of them, or a mapping whose names they are."""
    if isinstance(kind, Mapping | list | tuple):
        return [phrase for phrase in kind if isinstance(phrase, str)]
    return []


def _singulars(word: str) -> list[str]:
    """A word, and what it may be the plural or the possessive of."""
    return [word, *(ending.sub(end, word) for ending, end in _PLURALS if ending.search(word))]


def _misspellings(meant: Mapping[str, str]) -> dict[str, str]:
    """Every word less one letter -> what is meant; two words that agree so are one mistake apart.

    SymSpell's symmetric deletions (Garbe, 2012): lookups take microseconds, however many words there are.
    """
    return {
        form: instead
        for word, instead in meant.items()
        if len(word) >= _LEAST_LETTERS and word.isalpha()
        for form in _deletions(word)
    }


def _deletions(word: str) -> Iterable[str]:
    return [word, *(word[:at] + word[at + 1 :] for at in range(1, len(word)))]


def _put(before: str, word: str, replaced: str) -> str:
    """Add a word to a text: with the article that it takes, and apart from Chinese around it."""
    if not word.isascii():
        return before + word
    if not replaced.isascii():
        return f"{before.rstrip()} {word} ".lstrip()
    article = _ARTICLE.search(before, max(0, len(before) - 4))
    if article:
        before = f"{before[: article.start(1)]}{article[1]}{'n' if word[0] in 'aeiou' else ''} "
    return before + word

"""Finds breaks of continuity in stories: places, people and things that change or come from nowhere.

The checks are conditions that every story of the grammar meets, and they read nothing but its text. They cannot see
every fault, but two different stories, spliced together, seldom pass them.
"""

from __future__ import annotations

import random
import re

import grammar
import lexicon as lx

_INSIDE = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+")  # capitalised words that do not begin a sentence
_PLACE = re.compile(rf"(?:{'|'.join(lx.PLACE_STARTS)})(?:{'|'.join(lx.PLACE_ENDS)})")
_ELDER = re.compile(rf"[Tt]he ((?:old|wise old|kindly) (?:{'|'.join(lx.ELDERS + lx.ANIMAL_ELDERS)}))\b")
_SPOTS = re.compile("|".join(sorted({spot for s in lx.SETTINGS for spot in s.spots}, key=len, reverse=True)))
_NOT_PEOPLE = frozenset(("Sunday", "Monday", "Ghost"))
_NEWCOMER = re.compile(r"did not speak to anyone|never said a word")
# Nouns that sentences of the grammar also use for something other than the thing of the story.
_FREE = frozenset(
    "map blanket stone letter garden tree house ship window moon wolf box rope horn apple bell star".split()
)
_NOUNS = {t.noun for t in lx.THINGS} | set(lx.STRAYS + lx.CREATURES + lx.ODD_THINGS)
_FIRST = tuple(
    re.compile(rf"\b(?P<the>[Tt]he (?:\w+ )?)?(?P<noun>{noun})\b")
    for noun in sorted(_NOUNS - _FREE - set(lx.ANIMALS + lx.ANIMAL_ELDERS) - {role.noun for role in lx.ROLES})
)


def people(text: str) -> list[str]:
    """Names of people in ``text``, in the order of their first appearance inside a sentence."""
    names = [w for w in _INSIDE.findall(text) if w not in _NOT_PEOPLE and not _PLACE.fullmatch(w)]
    return list(dict.fromkeys(names))


def faults(text: str) -> list[str]:
    """What breaks the continuity of the story ``text``; empty for a consistent one."""
    found: list[str] = []
    places, elders, names = set(_PLACE.findall(text)), set(_ELDER.findall(text)), people(text)
    if len(places) > 1:
        found.append(f"places {sorted(places)}")
    if len(elders) > 1:
        found.append(f"elders {sorted(elders)}")
    if len(names) > (3 if _NEWCOMER.search(text) else 2):
        found.append(f"people {names}")
    plain = _SPOTS.sub("the place", text)
    for first in _FIRST:
        match = first.search(plain)
        if match and match["the"]:
            found.append(f"the {match['noun']} was never introduced")
    if text[-1:] not in (".", "!", '"', "?"):
        found.append("does not end")
    return found


def splice(rng: random.Random) -> str:
    """The first half of one story and the second half of another: what ``faults`` has to find."""
    first, second = grammar.story(rng).split(". "), grammar.story(rng).split(". ")
    return ". ".join(first[: len(first) // 2] + second[len(second) // 2 :])

"""Beginnings that no story of the grammar has: what people type to see how a storyteller goes on.

Sentences of mixed words, cut off anywhere or not at all, each followed by a way into a story that is grammatical
whatever came before. Without them, a model that knows only its own openings goes astray on everybody else's.
"""

from __future__ import annotations

import random

import grammar
import lexicon as lx

_TIMES = (
    "Yesterday", "Last week", "Last night", "Tomorrow", "Today", "Every night", "On Friday", "On Saturday morning",
    "In the year {n}", "In {n}", "Many years ago", "Not so long ago", "Far away", "Deep in the dark {o}",
    "After the {o}", "Before {o}", "Under the {o}", "Beyond the {o}", "Inside the {a} {o}", "High above the {o}",
    "In a {a} {o}", "At midnight", "One summer", "This morning", "{n} years later", "Once", "When the {o} {v}",
    "Somewhere in the {o}", "On a {a} night", "In a {o} far away", "In the middle of the {o}", "On the moon",
    "Behind the {a} {o}",
)  # fmt: skip
_SUBJECTS = (
    "I", "We", "They", "You", "He", "She", "It", "My {k}", "The {o}", "The {a} {o}", "A {o}", "A {a} {o}", "Everybody",
    "Nobody", "Somebody", "{h}", "{h}", "{h} and {f}", "The {r}", "The {a} {r}", "A {r}", "A {r} named {h}", "Her {o}",
    "His {k}", "Two {o}s", "The {r} and the {o}", "There", "This", "Our {o}", "{h} the {r}", "The {o} of the {o}",
    "Captain {h}", "Doctor {h}",
)  # fmt: skip
_VERBS = tuple(
    """went opened saw wanted said looked walked bought thought told had was were is are lost found built drove wrote
    ate drank ran jumped flew slept woke heard loved hated needed took gave made broke closed turned began stopped
    waited lived knew asked answered fought danced sang swam climbed fell forgot remembered hid has have can could will
    would must never always felt decided tried quickly suddenly slowly came sat stood put left kept met helped
    worked""".split()
)
_NOUNS = tuple(
    """store door forest castle mountain ocean planet rocket engine robot market kitchen window road river bridge
    school office train station airport phone letter secret promise dream storm shadow mirror garden desert island cave
    dragon king queen princess horse tiger elephant snake spider monster ghost computer program camera picture movie
    song piano trombone microscope pizza waffle pancake sandwich banana tomato bottle table carpet ladder tent tunnel
    temple museum library hospital battle sword shield spell potion statue diamond necklace treasure pirate submarine
    helicopter motorcycle tractor skateboard balloon rainbow volcano waterfall meadow village planet comet galaxy
    winter summer fire water sky night world city house tree dog cat bird fish fox mouse party birthday war peace truth
    story problem question number machine magnet battery puzzle cactus dinosaur volleyball snowman igloo sock shoe
    pocket wallet ticket newspaper calendar""".split()
)
_ADJECTIVES = tuple(
    """old young dark strange quick brown lazy tall tiny huge angry happy lonely magic golden broken hidden ancient
    silent wild rich poor fast slow hungry sleepy last first new purple invisible electric haunted famous secret brave
    wise cold stormy rainy empty lost sad mysterious modern simple cruel evil good bad great little big""".split()
)
_PREPOSITIONS = tuple("to in on under behind with without for from into over near about through across after".split())
_CAPITALS = ("I", "{", "Captain", "Doctor")
_JOINS = (" and", " but", ", and", " because", " when", ",", " so", " that", " who", " while", " then")
_HEADINGS = (
    "Dear diary,", "Dear {h},", "Chapter {n}", "Chapter One", "Title: The {a} {o}", "The {a} {o}", "Story:", "{n}.",
    "{n} + {n} =", "Q: What is {a} {o}?", "# The {o}", "## {o}", "import {o}", "def {o}():", "The meaning of life is",
    "Hello, my name is", "Hello, my name is {h}", "Hello!", "Hi, I am {h}.", "Breaking news:", "Ladies and gentlemen,",
    "The {o} of {h}", "Once upon a {o}", "It was raining.", "It was a {a} day.", "It was a {a} and {a} night",
    "It was the best of {o}s,", "It is a {o} that", "To be or not", "What is", "Why did the {o}", "Who is {h}?", "If",
    "I", "It", "My", "She", "He", "When", "There", "This is", "As the {o}", "Call me {h}.",
)  # fmt: skip

CUT = (
    " ... but that is another story.", " ... but that is a different story.",
    " ... but I will tell you about that later.", " ... oh, but that is a story for another day.",
)  # fmt: skip

# What may follow a time or a place and a comma, or a greeting and a comma.
AFTER_TIME = r"""
* there lived {ahd} named {h}. {His} home was in {place}, {akind} {lies}.
| {ahd} named {h} lived in {place}, {akind} {lies}.
| in {akind} {lies}, there lived {ahd} named {h}.
| there was {ahd} named {h}, who lived in {akind} {lies}.
"""
AFTER_GREETING = r"""
* let me tell you about {h}, {ahd} from {place}, {akind} {lies}.
| this is the story of {h}, {ahd} who lived in {akind} {lies}.
"""


class Beginning:
    """Words that somebody may begin with, and who is in them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.wish = grammar.Wish()

    def fill(self, pattern: str) -> str:
        """Replaces each slot of ``pattern`` by words."""
        parts: list[str] = []
        for piece in pattern.split("{"):
            slot, closed, rest = piece.partition("}")
            parts.append(self._slot(slot) + rest if closed else piece)
        return "".join(parts)

    def _slot(self, slot: str) -> str:
        rng, wish = self.rng, self.wish
        if slot in "oav":
            words, made = {"o": (_NOUNS, 0.15), "a": (_ADJECTIVES, 0.08), "v": (_VERBS, 0.03)}[slot]
            return grammar.made_word(rng) if rng.random() < made else rng.choice(words)
        if slot == "n":
            return str(rng.choice((rng.randint(1, 12), rng.randint(1, 99), rng.randint(1000, 3000))))
        if slot == "k":
            return rng.choice((*lx.KIN, "brother", "sister", "friend", "dog", "teacher", "boss"))
        if slot == "r":
            role = rng.choice([r for r in lx.ROLES if wish.girl is None or r.girl in (None, wish.girl)])
            wish.kind, wish.girl = role.noun, wish.girl if role.girl is None else role.girl
            return role.noun
        if wish.girl is None:
            wish.girl = rng.random() < 0.5
        if wish.hero is None:
            wish.hero = grammar.pick_name(rng, wish.girl, invented=0.4)
        if slot == "f" and wish.friend is None:
            wish.friend = grammar.different(wish.hero, lambda: grammar.pick_name(rng, not wish.girl, invented=0.4))
        return (wish.friend if slot == "f" else wish.hero) or ""

    def clause(self, inside: bool = False) -> str:
        """A clause without a full stop, whose words agree only by chance; ``inside`` a sentence, in lower case."""
        rng = self.rng
        subject = rng.choice(_SUBJECTS)
        if inside and not subject.startswith(_CAPITALS):
            subject = subject[0].lower() + subject[1:]
        words = self.fill(f"{subject} {{v}}")
        if rng.random() < 0.6:
            words += self.fill(
                rng.choice((" the {o}", " a {o}", " the {a} {o}", " {o}", " his {o}", " it", " {h}", " {a}"))
            )
        if rng.random() < 0.6:
            place = rng.choice((" the {o}", " a {a} {o}", " {h}", " my {o}"))
            words += f" {rng.choice(_PREPOSITIONS)}" + self.fill(place)
        return words

    def sentence(self) -> str:
        """One whole sentence."""
        rng = self.rng
        late = rng.random() < 0.35
        text = f"{self.fill(rng.choice(_TIMES))}, " if late else ""
        text += self.clause(inside=late)
        if rng.random() < 0.3:
            text += f"{rng.choice(_JOINS)} {self.clause(inside=True)}"
        return text + rng.choice("....!?")

    def text(self) -> tuple[str, str | None]:
        """The words, and the shape that leads from them into a story; None for any opening of the grammar."""
        rng, roll = self.rng, self.rng.random()
        if roll < 0.22:
            return self.fill(rng.choice(_TIMES)) + ",", AFTER_TIME
        if roll < 0.45:
            return " ".join(self.sentence() for _ in range(rng.choice((1, 1, 2)))), None
        if roll < 0.7:
            text = self.fill(rng.choice(_HEADINGS))
        else:
            words = " ".join(self.sentence() for _ in range(rng.choice((1, 1, 1, 2)))).split(" ")
            text = " ".join(words[: rng.randint(2, max(2, len(words) - 1))])
        if rng.random() < 0.1:
            text = text.lower()
        if text.endswith((".", "!", "?")):
            return text, None
        return (text, AFTER_GREETING) if text.endswith(",") else (text + rng.choice(CUT), None)


def noun(rng: random.Random) -> str:
    """A noun that is mostly none of the grammar's things, and now and then no word at all."""
    return rng.choice(_NOUNS) if rng.random() < 0.7 else grammar.made_word(rng)


def sentence(rng: random.Random) -> str:
    """One whole sentence that has nothing to do with stories."""
    return Beginning(rng).sentence()


def story(rng: random.Random) -> str:
    """A story that goes on from a foreign beginning, about those who are named in it."""
    beginning = Beginning(rng)
    text, shape = beginning.text()
    wish = beginning.wish
    for name in (wish.hero, wish.friend):
        if name is not None and name.lower() not in text.lower():  # it was cut off
            wish = grammar.Wish()
    joint = " " if shape or rng.random() < 0.8 else "\n\n"
    return text + joint + grammar.compose(rng, wish, shape).text

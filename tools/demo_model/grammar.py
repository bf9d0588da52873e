"""A grammar of short, coherent English stories: seeded, pure Python, no dependencies.

``story(random.Random(seed))`` tells one story. A story has a cast (hero, friend, elder, place, things), an opening, one
of the shapes of ``shapes.py`` with its branches, and an ending; every sentence is expanded from a template against that
cast, so names, pronouns, articles and things agree from the first sentence to the last.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import lexicon as lx
import shapes
import shapes_more

Cast = dict[str, str]
# A wording is literal text, a slot ("{", name) or a choice ("[", wordings).
Node = str | tuple[str, object]
Wording = tuple[Node, ...]
# A shape is a sequence of beats (lists of wordings), breaks ("%") and forks (lists of shapes).
Item = tuple[str, list[object]]

PARAGRAPH = "\x00"
LAST_EXTRA = 0.85


def article(phrase: str) -> str:
    """``phrase`` with "a" or "an" before it, by the sound of its first letters."""
    word = phrase.split()[0].lower()
    vowel = word[0] in "aeiou" and not word.startswith(("uni", "use", "uku", "eu", "one"))
    return ("an " if vowel or word.startswith(("hour", "honest")) else "a ") + phrase


def capital(text: str) -> str:
    """``text`` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


@cache
def parse_wording(text: str) -> Wording:
    """Parses ``[a|b]`` and ``{slot}``; raises ValueError when a bracket is not closed."""
    nodes, end = _parse(text, 0, "")
    if end != len(text):
        raise ValueError(f"unbalanced bracket at {end} in {text!r}")
    return nodes


def _parse(text: str, i: int, stops: str) -> tuple[Wording, int]:
    nodes: list[Node] = []
    while i < len(text) and text[i] not in stops:
        if text[i] == "[":
            options: list[Wording] = []
            while text[i] != "]":
                option, i = _parse(text, i + 1, "|]")
                options.append(option)
                if i >= len(text):
                    raise ValueError(f"open choice in {text!r}")
            nodes.append(("[", options))
            i += 1
        elif text[i] == "{":
            end = text.index("}", i)
            nodes.append(("{", text[i + 1 : end]))
            i = end + 1
        else:
            end = i
            while end < len(text) and text[end] not in "[{" + stops:
                end += 1
            nodes.append(text[i:end])
            i = end
    return tuple(nodes), i


@cache
def parse_shape(text: str) -> tuple[Item, ...]:
    """Parses the line language of ``shapes.py`` into beats, breaks and forks."""
    stack: list[list[list[Item]]] = [[[]]]
    for line in text.strip().replace("\\\n", "").splitlines():
        mark, body = line[:2].strip(), line[2:].strip()
        here = stack[-1][-1]
        if mark in ("*", "+"):
            here.append(("beat" if mark == "*" else "extra", [body]))
        elif mark == "|":
            here[-1][1].append(body)
        elif mark == "%":
            here.append(("break", []))
        elif mark == "<<":
            stack.append([[]])
        elif mark == "--":
            stack[-1].append([])
        elif mark == ">>":
            branches = stack.pop()
            stack[-1][-1].append(("fork", list(branches)))
        else:
            raise ValueError(f"unknown line {line!r}")
    return tuple(stack[0][0])


def fill(rng: random.Random, wording: Wording, cast: Cast, out: list[str]) -> None:
    """Appends one expansion of ``wording`` to ``out``; raises KeyError for a slot that neither cast nor lists know."""
    for node in wording:
        if isinstance(node, str):
            out.append(node)
        elif node[0] == "[":
            options = node[1]
            assert isinstance(options, list)
            fill(rng, rng.choice(options), cast, out)
        else:
            slot = str(node[1])
            if slot.startswith("a:"):
                out.append(article(cast[slot[2:]]))
            elif slot.startswith("A:"):
                out.append(capital(article(cast[slot[2:]])))
            elif slot in cast:
                out.append(cast[slot])
            else:
                out.append(rng.choice(lx.WORDS[slot]))


def tell(rng: random.Random, items: Sequence[Item], cast: Cast, out: list[str], extras: float = 1.0) -> None:
    """Appends the sentences of a shape to ``out``, with ``PARAGRAPH`` where a paragraph may end.

    ``extras`` is the probability of each beat that a short telling leaves out; the last one rounds the story off and is
    seldom left out.
    """
    for number, (kind, body) in enumerate(items):
        likely = max(extras, LAST_EXTRA) if number == len(items) - 1 else extras
        if kind == "beat" or (kind == "extra" and rng.random() < likely):
            parts: list[str] = []
            fill(rng, parse_wording(str(rng.choice(body))), cast, parts)
            if parts:
                out.append("".join(parts))
        elif kind == "break":
            out.append(PARAGRAPH)
        elif kind == "fork":
            branch = rng.choice(body)
            assert isinstance(branch, list)
            tell(rng, branch, cast, out, extras)


@dataclass(frozen=True)
class Shape:
    """One story shape: its text, how often it is told, and which things and heroes it can use."""

    name: str
    text: str
    weight: float = 1.0
    things: str = "small"  # small, hard, any, mend, signal, creature or none
    children_only: bool = False
    siblings: bool = True  # whether the friend may be of the hero's own family


SHAPES = (
    Shape("lost", shapes.LOST, 1.5),
    Shape("trade", shapes.TRADE, 0.7, siblings=False),
    Shape("storm", shapes.STORM, 1.0, "signal"),
    Shape("gift", shapes.GIFT, 1.0, siblings=False),
    Shape("race", shapes.RACE, 1.0, "any"),
    Shape("mistaken", shapes.MISTAKEN, 1.0, "hard"),
    Shape("repair", shapes.REPAIR, 1.2, "mend"),
    Shape("brave", shapes_more.BRAVE, 0.8, "none", True),
    Shape("noise", shapes_more.NOISE, 0.8, "none"),
    Shape("map", shapes_more.MAP, 0.9),
    Shape("contest", shapes_more.CONTEST, 0.9, "any"),
    Shape("newcomer", shapes_more.NEWCOMER, 0.9),
    Shape("wish", shapes_more.WISH, 0.9, siblings=False),
    Shape("promise", shapes_more.PROMISE, 1.0),
    Shape("seed", shapes_more.SEED, 0.8, "none"),
    Shape("borrowed", shapes_more.BORROWED, 0.9, "hard", siblings=False),
    Shape("creature", shapes_more.CREATURE, 1.0, "creature"),
)
WEIGHTS = tuple(shape.weight for shape in SHAPES)
BY_THING = {kind: tuple(s for s in SHAPES if s.things == kind) for kind in {s.things for s in SHAPES}}
SMALL = tuple(t for t in lx.THINGS if t.noun not in lx.BIG)
HARD = tuple(t for t in SMALL if t.noun not in lx.SOFT)


@dataclass
class Wish:
    """What a request asks for; None means that the grammar chooses."""

    hero: str | None = None
    girl: bool | None = None
    kind: str | None = None  # an animal, a profession or any other word for a person
    trait: str | None = None  # an adjective for the hero
    friend: str | None = None
    thing: str | None = None
    adjective: str | None = None
    shape: Shape | None = None


@dataclass
class Story:
    """A told story: its text, its cast and its shape."""

    text: str
    cast: Cast
    shape: Shape


def invented_name(rng: random.Random, girl: bool) -> str:
    """A name made of syllables, so that a model learns to copy names it has not seen."""
    stem = rng.choice(lx.NAME_STARTS) + "".join(rng.choice(lx.NAME_MIDDLES) for _ in range(rng.choice((0, 0, 0, 1, 1))))
    end = rng.choice(lx.GIRL_ENDS if girl else lx.BOY_ENDS)
    if end[0] in "aeiou":
        stem = stem.rstrip("aeiou")
    return stem + end


def made_word(rng: random.Random) -> str:
    """A word in lower case that means nothing, of one to four syllables."""
    parts = [rng.choice(("", *lx.ONSETS)), rng.choice(lx.VOWELS)]
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2))):
        parts += [
            rng.choice(("", "", *lx.CODAS)) if rng.random() < 0.4 else "",
            rng.choice(lx.ONSETS),
            rng.choice(lx.VOWELS),
        ]
    if rng.random() < 0.6 or len(parts) == 2:
        parts.append(rng.choice(lx.CODAS))
    return "".join(parts)


def pick_name(rng: random.Random, girl: bool, invented: float = 0.18) -> str:
    """A common name, or with probability ``invented`` a made one."""
    if rng.random() < invented:
        return capital(made_word(rng)) if rng.random() < 0.5 else invented_name(rng, girl)
    return rng.choice(lx.GIRLS if girl else lx.BOYS)


def _pronouns(cast: Cast, prefix: str, girl: bool) -> None:
    words = ("she", "her", "her", "herself") if girl else ("he", "him", "his", "himself")
    for key, word in zip(("he", "him", "his", "himself"), words, strict=True):
        cast[prefix + key] = word
    cast[prefix + "He"] = capital(words[0])
    cast[prefix + "His"] = capital(words[2])


def _hero(rng: random.Random, cast: Cast, wish: Wish, setting: lx.Setting, children_only: bool) -> None:
    girl = wish.girl if wish.girl is not None else rng.random() < 0.5
    cast["h"] = wish.hero or pick_name(rng, girl)
    _pronouns(cast, "", girl)
    if setting.animal:
        noun = wish.kind or rng.choice(lx.ANIMALS)
        adjective = rng.choice(lx.ANIMAL_ADJECTIVES)
    elif wish.kind or (not children_only and rng.random() < 0.3):
        role = rng.choice([r.noun for r in lx.ROLES if r.girl in (None, girl)])
        noun = wish.kind or (role if rng.random() < 0.3 else rng.choice(lx.WORKERS))
        adjective = rng.choice(("young", "", *lx.TRAITS[:12]))
        if noun not in lx.WORKERS:
            adjective = rng.choice(("", "", adjective, "old", "brave", "little"))
        if noun.startswith(("old ", "little ")):
            adjective = ""
    else:
        pair = rng.choice(lx.PEOPLE[:3] if children_only else lx.PEOPLE)
        noun = pair[0] if girl else pair[1]
        adjective = rng.choice(("little", "small", *lx.TRAITS))
        if noun.startswith("young"):
            adjective = rng.choice(lx.TRAITS)
    described = f"{adjective if wish.trait is None else wish.trait} {noun}".strip()
    cast["hn"], cast["hd"], cast["ahd"] = noun, described, article(described)
    cast["Ahd"] = capital(cast["ahd"])
    cast["friend_girl"] = "" if girl else "girl"


def _company(rng: random.Random, cast: Cast, wish: Wish, setting: lx.Setting, siblings: bool) -> None:
    """The friend (of the other gender, so that no pronoun has two readings), the elder and a child without pronouns."""
    friend_girl = bool(cast.pop("friend_girl"))
    used = {cast["h"]}
    cast["f"] = wish.friend or _fresh(used, lambda: pick_name(rng, friend_girl))
    used.add(cast["f"])
    cast["c"] = _fresh(used, lambda: pick_name(rng, rng.random() < 0.5))
    _pronouns(cast, "f", friend_girl)
    pair = rng.choice(lx.FRIENDS + lx.FAMILY if siblings else lx.FRIENDS)
    cast["fk"] = pair[0] if friend_girl else pair[1]
    cast["fd"] = f"{cast['his']} {cast['fk']}"
    elder = _fresh({cast["hn"]}, lambda: rng.choice(lx.ANIMAL_ELDERS if setting.animal else lx.ELDERS))
    cast["e"] = f"the {rng.choice(('old', 'old', 'wise old', 'kindly'))} {elder}"
    cast["E"] = capital(cast["e"])
    _pronouns(cast, "e", rng.random() < 0.5)
    cast["kin"], cast["kin2"] = rng.sample(lx.KIN, 2)
    cast["Mykin"] = f"My {cast['kin2']}"


def different(word: str, draw: Callable[[], str]) -> str:
    """Draws until the outcome is not ``word``."""
    return _fresh({word}, draw)


def _fresh(used: set[str], draw: Callable[[], str]) -> str:
    """Draws until the word is not in ``used``."""
    while True:
        word = draw()
        if word not in used:
            return word


def _place(rng: random.Random, cast: Cast, setting: lx.Setting) -> None:
    kind = rng.choice(setting.kinds)
    cast["place"] = rng.choice(lx.PLACE_STARTS) + rng.choice(lx.PLACE_ENDS)
    cast["akind"] = article(kind)
    cast["kn"] = next((w for w in kind.split() if w in ("village", "town", "city")), kind.split()[-1])
    cast["lies"] = rng.choice(setting.lies)
    cast["s1"], cast["s2"], cast["s3"], cast["s4"] = rng.sample(setting.spots, 4)
    cast["mood"] = rng.choice(lx.MOODS)


def _put_thing(rng: random.Random, cast: Cast, key: str, noun: str, adjectives: Sequence[str]) -> None:
    adjective = rng.choice(adjectives)
    cast[key], cast[key + "a"] = noun, f"{adjective} {noun}".strip()
    cast["a" + key] = article(cast[key + "a"])


def _things(rng: random.Random, cast: Cast, wish: Wish, shape: Shape) -> None:
    pool = HARD if shape.things == "hard" else lx.THINGS if shape.things == "any" else SMALL
    main, second, third = (rng.choice(pool), *rng.sample(SMALL, 2))
    while main.noun in (second.noun, third.noun):
        second, third = rng.sample(SMALL, 2)
    noun = main.noun
    adjectives: Sequence[str] = main.adjectives
    if wish.thing:
        noun, adjectives = wish.thing, adjectives_for(wish.thing)
    elif shape.things == "creature":
        noun, adjectives = rng.choice([c for c in lx.STRAYS if c != cast["hn"]]), lx.CREATURE_ADJECTIVES
    elif shape.things not in ("mend", "signal") and rng.random() < 0.08:
        noun = rng.choice((rng.choice(lx.ODD_THINGS), made_word(rng), invented_name(rng, False).lower()))
        adjectives = lx.ODD_ADJECTIVES
    if wish.adjective is not None:
        adjectives = (wish.adjective,)
    _put_thing(rng, cast, "o", noun, adjectives)
    _put_thing(rng, cast, "p", second.noun, second.adjectives)
    _put_thing(rng, cast, "q", third.noun, third.adjectives)
    _special_things(rng, cast, wish, shape)


def _special_things(rng: random.Random, cast: Cast, wish: Wish, shape: Shape) -> None:
    """Things of one shape: what is mended, what shines or sounds in a storm, the seed, the trap, the instrument."""
    mend = next((m for m in lx.MENDS if m.noun == wish.thing), None) or rng.choice(lx.MENDS)
    signal = next((s for s in lx.SIGNALLERS if s.noun == wish.thing), None) or rng.choice(lx.SIGNALLERS)
    given = (wish.adjective,) if wish.adjective is not None else None
    _put_thing(rng, cast, "m", mend.noun, given or mend.adjectives)
    cast.update(broken=mend.broken, cure=mend.cure, after=mend.after)
    _put_thing(rng, cast, "l", signal.noun, given or signal.adjectives)
    sounds = signal.noun in lx.SIGNALS
    deed = lx.SIGNALS.get(signal.noun, "swung it back and forth")
    cast.update(use=f"{cast['He']} {deed}", noticed="heard" if sounds else "saw", followed="followed")
    light = rng.choice(lx.LIGHTS)
    cast["alight"] = article(f"{rng.choice(light.adjectives)} {light.noun}")
    cast["ao2"] = rng.choice(("a long rope", "a strong rope", "an old rope"))
    cast["apot"], cast["aj"] = rng.choice(lx.PROPS), rng.choice(lx.TRAPS)
    cast["ak"], cast["x"] = rng.choice(lx.INSTRUMENTS), rng.choice(lx.WRAPS)
    cast["seed"] = rng.choice(lx.WORDS["seed"])
    cast["seedn"] = "bean" if cast["seed"] == "bean" else "seed"
    cast["abloom"] = article(
        f"{rng.choice(('tall', 'beautiful', 'splendid', 'great'))} {rng.choice(lx.WORDS['bloom'])}"
    )
    cast["dish"] = rng.choice(lx.WORDS["dish"])
    if shape.things == "mend":
        cast.update(o=cast["m"], oa=cast["ma"], ao=cast["am"])
    elif shape.things == "signal":
        cast.update(o=cast["l"], oa=cast["la"], ao=cast["al"])


def adjectives_for(noun: str) -> Sequence[str]:
    """Adjectives that suit ``noun``, also when it is none of ours."""
    for thing in lx.THINGS:
        if thing.noun == noun:
            return thing.adjectives
    return lx.CREATURE_ADJECTIVES if noun in lx.CREATURES else lx.ODD_ADJECTIVES


def make_cast(rng: random.Random, wish: Wish, shape: Shape) -> Cast:
    """Chooses everyone and everything in a story; every slot that a template names is in the cast or a word list."""
    animal = wish.kind in lx.ANIMALS if wish.kind else rng.random() < 0.28
    setting = rng.choice([s for s in lx.SETTINGS if s.animal == animal])
    cast: Cast = {}
    _place(rng, cast, setting)
    _hero(rng, cast, wish, setting, shape.children_only)
    _company(rng, cast, wish, setting, shape.siblings)
    _things(rng, cast, wish, shape)
    cast["baby"] = rng.choice(lx.WILD_BABIES if animal else lx.BABIES)
    cast["Baby"] = capital(cast["baby"])
    cast["animal"] = "yes" if animal else ""
    return cast


_PAWS = (
    (re.compile(r"\bhands\b"), "paws"), (re.compile(r"\bhand\b"), "paw"), (re.compile(r"\bfingers\b"), "paws"),
    (re.compile(r"\ba small child\b"), "a little mouse"), (re.compile(r"\bthe child\b"), "the mouse"),
    (re.compile(r"\bpeople\b"), "animals"), (re.compile(r"\bPeople\b"), "The animals"),
)  # fmt: skip


LONG = 155  # words; about 190 tokens
TRIES = 4


def compose(rng: random.Random, wish: Wish | None = None, opening: str | None = None) -> Story:
    """Tells one story that grants ``wish``; of a few tellings, the first that is not long, else the shortest.

    Args:
        rng: source of every choice; the same state gives the same story.
        wish: names, kinds and things that a request asks for.
        opening: a shape that begins the story; by default one of the grammar's openings.

    """
    wish = wish or Wish()
    shape = wish.shape or rng.choices(SHAPES, WEIGHTS)[0]
    while wish.shape is None and wish.kind and shape.children_only:
        shape = rng.choices(SHAPES, WEIGHTS)[0]
    told: list[tuple[int, Story]] = []
    for _ in range(TRIES):
        one = _telling(rng, wish, shape, opening)
        told.append((one.text.count(" "), one))
        if told[-1][0] <= LONG:
            return one
    return min(told, key=lambda pair: pair[0])[1]


def _telling(rng: random.Random, wish: Wish, shape: Shape, opening: str | None) -> Story:
    cast = make_cast(rng, wish, shape)
    parts: list[str] = []
    if opening or rng.random() < 0.6:
        cast["Day"] = rng.choice(
            ("One day", "One day", "One morning", "One fine day", "One afternoon", "Then, one day")
        )
        cast["Night"] = rng.choice(("One night", "One dark night", "One cold night"))
        cast["day"] = rng.choice(("one day", "one morning"))
        tell(rng, parse_shape(opening or shapes.HABITUAL), cast, parts)
        if rng.random() < 0.12:
            tell(rng, parse_shape(shapes.HABITS), cast, parts)
    else:
        cast["Day"] = rng.choice(("A little later", "Later that day", "Not long after", "That same day"))
        cast["Night"], cast["day"] = "That night", rng.choice(("later that day", "that same day"))
        tell(rng, parse_shape(shapes.SPECIFIC), cast, parts)
    tell(rng, parse_shape(shape.text), cast, parts, extras=rng.choice((0.0, 0.0, 0.0, 0.3)))
    tell(rng, parse_shape(shapes_more.ENDINGS), cast, parts)
    text = _join(parts, "\n\n" if rng.random() < 0.35 else " ")
    if cast["animal"]:
        for pattern, word in _PAWS:
            text = pattern.sub(word, text)
    return Story(text, cast, shape)


def _join(parts: Sequence[str], paragraph: str) -> str:
    text = " ".join(part for part in parts if part)
    return text.replace(f" {PARAGRAPH} ", paragraph).strip()


def story(rng: random.Random) -> str:
    """The text of one freely chosen story."""
    return compose(rng).text


_SENTENCE = re.compile(r"(?<=[.!?]) (?=[A-Z])")


def fragment(rng: random.Random) -> str:
    """A story from one of its later sentences on, so that a model can take up a prompt that starts anywhere."""
    sentences = _SENTENCE.split(story(rng))
    return " ".join(sentences[rng.randrange(1, max(2, len(sentences) // 2)) :])

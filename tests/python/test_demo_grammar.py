"""The story grammar behind the demo model: well-formed, consistent, seeded, and rich."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "tools" / "demo_model"
NAMES = ("lexicon", "shapes", "shapes_more", "grammar", "chat")


@pytest.fixture(scope="module")
def modules() -> Any:
    """The grammar's modules, imported from their folder and forgotten again afterwards."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: __import__(name) for name in NAMES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def grammar(modules: dict[str, ModuleType]) -> Any:
    return modules["grammar"]


@pytest.fixture(scope="module")
def told(grammar: Any) -> list[Any]:
    return [grammar.compose(random.Random(seed)) for seed in range(1500)]


def wordings(text: str) -> list[str]:
    joined = text.strip().replace("\\\n", "")
    return [line[2:].strip() for line in joined.splitlines() if line[:1] in "*+|"]


def test_same_seed_same_story(grammar: Any) -> None:
    assert grammar.story(random.Random(5)) == grammar.story(random.Random(5))
    assert len({grammar.story(random.Random(seed)) for seed in range(500)}) == 500


def test_nothing_of_the_template_language_is_left(told: list[Any]) -> None:
    for story in told:
        assert not re.search(r"[{}\[\]|\\\x00]|  | [.,!?]|\.\.", story.text), story.text
        assert story.text == story.text.strip()


def test_articles_agree_with_the_next_sound(told: list[Any]) -> None:
    for story in told:
        for match in re.findall(r"\b[Aa] ([aeiou]\w*)", story.text):
            assert match.startswith(("uni", "uku", "use", "one")), story.text
        for match in re.findall(r"\b[Aa]n ([^aeiou\W]\w*)", story.text):
            assert match.startswith(("hour", "honest")), story.text


def test_sentences_are_whole(told: list[Any]) -> None:
    for story in told:
        assert story.text[-1] in '.!?"', story.text
        assert story.text.count('"') % 2 == 0, story.text
        for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", story.text):
            assert sentence.lstrip('"')[0].isupper(), sentence


def test_no_word_is_doubled(told: list[Any]) -> None:
    for story in told:
        doubled = re.search(r"\b(\w+) \1\b", re.sub(r"[Ll]ong, long", "", story.text))
        assert doubled is None or doubled.group(1) == "had", story.text


def test_cast_is_consistent(told: list[Any]) -> None:
    for story in told:
        cast = story.cast
        assert story.text.count(cast["h"]) >= 2, story.text
        assert len({cast["h"], cast["f"], cast["c"]}) == 3
        assert cast["he"] != cast["fhe"]
        assert len({cast[key] for key in ("s1", "s2", "s3", "s4")}) == 4
        if story.shape.things != "none":
            assert cast["o"] in story.text, story.text


def test_lengths(told: list[Any]) -> None:
    words = sorted(len(story.text.split()) for story in told)
    assert words[0] >= 60
    assert words[len(words) // 2] <= 165
    assert words[-1] <= 240


def test_every_wording_of_every_shape_expands(grammar: Any, modules: dict[str, ModuleType]) -> None:
    """Each wording by itself: brackets close and each slot is known, also in wordings that are seldom drawn."""
    rng = random.Random(1)
    texts = [shape.text for shape in grammar.SHAPES]
    texts += [modules["shapes"].HABITUAL, modules["shapes"].HABITS, modules["shapes"].SPECIFIC]
    for shape, text in zip([*grammar.SHAPES, *[grammar.SHAPES[0]] * 3], texts, strict=True):
        cast = {
            **grammar.make_cast(rng, grammar.Wish(), shape),
            "Day": "One day",
            "day": "one day",
            "Night": "One night",
        }
        assert wordings(text)
        for wording in wordings(text):
            out: list[str] = []
            grammar.fill(rng, grammar.parse_wording(wording), cast, out)
            assert "{" not in "".join(out)


def test_unbalanced_wording_is_refused(grammar: Any) -> None:
    with pytest.raises(ValueError):
        grammar.parse_wording("a [b|c")


def test_unknown_line_is_refused(grammar: Any) -> None:
    with pytest.raises(ValueError):
        grammar.parse_shape("* fine\n!! not fine")


def test_unknown_slot_is_refused(grammar: Any) -> None:
    with pytest.raises(KeyError):
        grammar.fill(random.Random(0), grammar.parse_wording("{nobody}"), {}, [])


@pytest.mark.parametrize(
    ("phrase", "wanted"),
    [("apple", "an apple"), ("kite", "a kite"), ("unicorn", "a unicorn"), ("ukulele", "a ukulele"),
     ("old kite", "an old kite"), ("honest fox", "an honest fox"), ("umbrella", "an umbrella")],
)  # fmt: skip
def test_article(grammar: Any, phrase: str, wanted: str) -> None:
    assert grammar.article(phrase) == wanted


def test_wishes_are_granted(grammar: Any) -> None:
    shape = next(s for s in grammar.SHAPES if s.name == "lost")
    for seed in range(50):
        wish = grammar.Wish(hero="Zorvik", girl=True, thing="zindle", adjective="odd", shape=shape)
        story = grammar.compose(random.Random(seed), wish)
        assert "Zorvik" in story.text and "zindle" in story.text and "odd zindle" in story.text
        assert story.cast["he"] == "she"


def test_requests_name_what_the_story_tells(modules: dict[str, ModuleType]) -> None:
    chat = modules["chat"]
    named = 0
    for seed in range(400):
        asked, story = chat.request(random.Random(seed))
        hero = story.cast["h"]
        if f"about {hero}" in asked or f"named {hero}" in asked:
            named += 1
            assert hero in story.text
        # The thing, perhaps behind an adjective, perhaps before the rest of the request.
        thing = re.search(r"and an? (\w+)(?: (\w+))?", asked)
        if thing and story.shape.things != "none":
            words = [word.lower() for word in thing.groups() if word]
            assert any(word in story.text.lower() for word in words), (asked, story.text)
    assert named > 100


def test_conversations_are_chatml(modules: dict[str, ModuleType]) -> None:
    jinja2 = pytest.importorskip("jinja2")
    chat = modules["chat"]
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(chat.CHAT_TEMPLATE)
    for seed in range(300):
        text = chat.conversation(random.Random(seed))
        turns = re.findall(r"<\|im_start\|>(system|user|assistant)\n(.*?)<\|im_end\|>\n", text, re.S)
        messages = [{"role": role, "content": content} for role, content in turns]
        assert messages[-1]["role"] == "assistant"
        assert template.render(messages=messages, add_generation_prompt=False) == text
        assert all(content.strip() == content and content for _, content in turns)

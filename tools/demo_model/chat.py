"""Chat samples in ChatML: requests for a story, the story, questions about it, honest answers to everything else."""

from __future__ import annotations

import random
from collections.abc import Callable

import foreign
import grammar
import lexicon as lx

IM_START, IM_END, END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

# The jinja template that the GGUF file carries; ``turns`` below writes the same text.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

Turn = tuple[str, str]

_SYSTEM = (
    "You are a friendly storyteller.", "You tell short stories.", "You are a helpful assistant.",
    "You write stories for children.",
    "You are a helpful assistant that tells short stories.",
)  # fmt: skip
_ASK = (
    "Tell me a story", "Tell a story", "Write a story", "Write a short story", "Tell me a short story",
    "Can you tell me a story",
    "Could you tell me a story", "Please tell me a story", "I would like a story", "Write me a story",
    "Make up a story",
    "Give me a story", "Please write a short story", "A story", "Do you know a story", "I want to hear a story",
    "Can you write a story", "I want a story", "Tell us a story", "Write a fairy tale", "Tell me a tale",
)  # fmt: skip
_AGAIN = (
    "Another one, please.", "One more!", "Tell me another story.", "Another story, please.",
    "That was nice. One more, please.",
    "Again!", "Can you tell me another one?", "More, please.",
)  # fmt: skip
_SMALL_TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("Hello!", "Hi", "Hello", "Hi there!", "Good morning!", "Good evening.", "Hey", "Hey there"),
        (
            "Hello! Would you like to hear a story? Give me a name and a thing, and I will begin.",
            "Hello! I tell short stories. Who should be in yours?",
            "Good day to you! Name somebody, name something, and I will tell you a story about them.",
        ),
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "What can you do?", "How do you work?",
        "Are you an AI?",
         "Are you a person?", "Introduce yourself."),
        (
            "I am a very small language model, and I tell short stories. Give me a name and a thing, and I will begin.",
            "I am a tiny storyteller, made of only a few million numbers. I can tell you a story about anyone you "
            "like.",
            "I am a small model that knows one trick: short stories. Would you like one?",
        ),
    ),
    (
        ("Thank you!", "Thanks", "Thanks!", "Thank you, that was lovely.", "That was nice.", "I liked that.",
        "Great story!"),
        (
            "You are welcome! Shall I tell you another one?",
            "I am glad that you liked it. Ask me for another one whenever you want.",
        ),
    ),
    (
        ("How are you?", "How are you today?", "Are you well?", "How is it going?"),
        ("Very well, thank you, and full of stories. Would you like one?",
        "I am fine, thank you! Shall I tell you a story?"),
    ),
    (
        ("Bye", "Goodbye!", "Good night.", "See you later.", "Good night!"),
        ("Goodbye! Come back when you would like another story.", "Good night, and sweet dreams!"),
    ),
)  # fmt: skip
_OTHER_HEADS = (
    "What is", "How do I", "Why is", "Explain", "Write code for", "Translate", "What do you think about",
    "How many", "Who was",
    "When did", "Calculate", "Can you help me with", "Give me a list of", "What is the capital of", "Where is",
    "Is it true that",
    "Summarize", "How does", "Solve", "Define", "Write an email to", "Write a poem about", "Tell me a joke about",
    "Who is",
    "Can you", "Why", "How", "What", "Which",
)  # fmt: skip
# What a hero does in each shape that has a thing of its own, for requests such as "a king who lost his crown".
_PLOTS: dict[str, tuple[str, ...]] = {
    "lost": ("who lost {his} {o}", "who lost {ao}", "who is looking for {his} {o}"),
    "mistaken": ("who found {ao}", "who finds {ao}"),
    "repair": ("who had a broken {o}", "who mends {ao}"),
    "race": ("who wanted to win {ao}", "who wants {ao}"),
    "trade": ("who wanted {ao}", "who has no money and wants {ao}"),
    "gift": ("who found {ao} at the door", "who got {ao} as a gift"),
    "promise": ("who forgot to bring {ao}", "who made a promise"),
    "creature": ("who met {ao}", "who found {ao}", "and {his} friend, {ao}"),
    "noise": ("who heard a noise in the night", "who was afraid of ghosts"),
    "seed": ("who planted a seed", "who had a garden"),
    "borrowed": ("who broke {ao}", "who borrowed {ao}"),
    "contest": ("who loved to cook", "who won {ao}"),
}
_TAILS = (
    "in the {o}", "on {ao}", "for my {k}", "with a happy ending", "before I go to bed", "in a few sentences", "please",
    "who wants to see {ao}", "who lives in {ao}", "in a {o}", "that makes me laugh", "about friendship", "from the {o}",
    "who was afraid of the {o}", "and the {o}", "that is {n} words long", "and their adventures", "at the {o}",
    "who can {v} the {o}", "during the {o}",
)  # fmt: skip
_OTHER_ANSWERS = (
    "I am sorry, I do not know that. I am a very small model, and I only know how to tell short stories. Would you "
    "like one?",
    "That is too hard for me. I can only tell stories. Give me a name and a thing, and I will begin.",
    "I wish that I knew! All I can do is tell short stories. Shall I tell you one?",
)


def turns(messages: list[Turn]) -> str:
    """ChatML text of ``(role, content)`` messages, each ended by ``<|im_end|>`` and a line break."""
    return "".join(f"{IM_START}{role}\n{content}{IM_END}\n" for role, content in messages)


def _roughen(rng: random.Random, text: str) -> str:
    """What people really type: now and then without capitals or a full stop."""
    roll = rng.random()
    if roll < 0.2:
        text = text.lower()
    if rng.random() < 0.25:
        text = text.rstrip(".?!")
    return text


def _topic(rng: random.Random) -> tuple[str, grammar.Wish]:
    """What a request is about, in words and as a wish."""
    girl = rng.random() < 0.5
    wish = grammar.Wish(hero=grammar.pick_name(rng, girl, invented=0.4), girl=girl)
    shape = rng.choices(grammar.SHAPES, grammar.WEIGHTS)[0]
    wish.shape = shape
    roll = rng.random()
    if roll < 0.15 or shape.things == "none":
        return _hero_topic(rng, wish)
    if roll < 0.27 and shape.name in _PLOTS and shape.things != "none":
        return _plot_topic(rng, wish, shape)
    if roll < 0.34:
        wish.friend = grammar.pick_name(rng, not girl, invented=0.3)
        if wish.friend != wish.hero:
            start = rng.choice(("about", "about", "about two friends,", "with"))
            return f"{start} {wish.hero} and {wish.friend}", wish
        wish.friend = None
    wish.thing = _pick_thing(rng, shape)
    wish.adjective = rng.choice(grammar.adjectives_for(wish.thing)) if rng.random() < 0.35 else None
    phrase = f"{wish.adjective} {wish.thing}" if wish.adjective else wish.thing
    thing = grammar.article(phrase)
    if roll > 0.85:
        return f"about {thing}", grammar.Wish(thing=wish.thing, adjective=wish.adjective, shape=shape)
    if roll > 0.72 and not shape.children_only:
        kind = _pick_kind(rng, wish)
        if roll > 0.79:
            wish.hero = None
            return f"about {kind} and {thing}", wish
        return f"about {kind} named {wish.hero} and {thing}", wish
    return rng.choice(
        (f"about {wish.hero} and {thing}", f"about {wish.hero} and {thing}", f"with {wish.hero} and {thing}")
    ), wish


def _hero_topic(rng: random.Random, wish: grammar.Wish) -> tuple[str, grammar.Wish]:
    if wish.shape is not None and wish.shape.children_only:
        return f"about {wish.hero}", wish
    if wish.shape is not None and wish.shape.name in _PLOTS and rng.random() < 0.4:
        return _plot_topic(rng, wish, wish.shape)
    if rng.random() < 0.6:
        kind = _pick_kind(rng, wish)
        if rng.random() < 0.5:
            wish.hero = None
            return f"about {kind}", wish
        return f"about {kind} named {wish.hero}", wish
    return f"about {wish.hero}", wish


def _pick_kind(rng: random.Random, wish: grammar.Wish) -> str:
    """Makes the hero of ``wish`` somebody of a kind, at times with an adjective; returns that with its article."""
    roles = [role.noun for role in lx.ROLES if role.girl in (None, wish.girl)]
    made = grammar.made_word(rng)
    wish.kind = rng.choice((*(rng.choice(lx.ANIMALS) for _ in range(4)), *(rng.choice(roles) for _ in range(4)), made,
                            rng.choice(lx.WORKERS), rng.choice(lx.WORKERS)))  # fmt: skip
    if rng.random() < 0.35 and not wish.kind.startswith(("old ", "little ")):
        wish.trait = rng.choice((*lx.TRAITS, "old", "young", "little", "small", "sad", "lonely", "wise", "happy"))
    return grammar.article(f"{wish.trait or ''} {wish.kind}".strip())


def _plot_topic(rng: random.Random, wish: grammar.Wish, shape: grammar.Shape) -> tuple[str, grammar.Wish]:
    """A hero and what happens to them, as in "a brave knight who lost his ring"."""
    hero = wish.hero
    if rng.random() < 0.75:
        hero = _pick_kind(rng, wish)
        if rng.random() < 0.6:
            wish.hero = None
        else:
            hero += f" named {wish.hero}"
    plot = rng.choice(_PLOTS[shape.name])
    if "o}" in plot:
        wish.thing = _pick_thing(rng, shape)
    thing = wish.thing or ""
    words = {"{his}": "her" if wish.girl else "his", "{o}": thing, "{ao}": grammar.article(thing or "thing")}
    for slot, word in words.items():
        plot = plot.replace(slot, word)
    return f"about {hero} {plot}", wish


def _tail(rng: random.Random) -> str:
    """The rest of a request, which asks for more than the storyteller can do."""
    tail = rng.choice(_TAILS).replace("{ao}", grammar.article(foreign.noun(rng))).replace("{o}", foreign.noun(rng))
    return tail.replace("{k}", rng.choice(lx.KIN)).replace("{n}", str(rng.randint(10, 500))).replace("{v}", "see")


def _pick_thing(rng: random.Random, shape: grammar.Shape) -> str:
    if shape.things == "mend":
        return rng.choice(lx.MENDS).noun
    if shape.things == "signal":
        return rng.choice(lx.SIGNALLERS).noun
    if shape.things == "creature":
        return rng.choice(lx.CREATURES)
    roll = rng.random()
    if roll < 0.2:
        return rng.choice(lx.ODD_THINGS)
    if roll < 0.4:
        return foreign.noun(rng)
    if roll < 0.5:
        return grammar.made_word(rng) if roll < 0.45 else grammar.invented_name(rng, roll < 0.47).lower()
    pool = grammar.HARD if shape.things == "hard" else lx.THINGS if shape.things == "any" else grammar.SMALL
    return rng.choice(pool).noun


def request(rng: random.Random) -> tuple[str, grammar.Story]:
    """A request for a story and the story that answers it."""
    ask = rng.choice(_ASK)
    mark = "?" if ask.startswith(("Can", "Could", "Do")) else "."
    if rng.random() < 0.12:
        return _roughen(rng, ask + mark), grammar.compose(rng)
    about, wish = _topic(rng)
    if rng.random() < 0.15:
        about += " " + _tail(rng)
    return _roughen(rng, f"{ask} {about}{mark}"), grammar.compose(rng, wish)


def _question(rng: random.Random, told: grammar.Story) -> list[Turn]:
    """A question about the story that was just told, and its answer."""
    cast = told.cast
    asked: list[tuple[str, str]] = [
        ("Who is the story about?", f"It is about {cast['h']}."),
        ("What is the main character called?", f"The main character is called {cast['h']}."),
    ]
    if cast["place"] in told.text:
        asked.append(("Where does the story happen?", f"It happens in {cast['place']}."))
    if f"{cast['f']}, " in told.text and cast["fd"] in told.text:
        asked.append((f"Who is {cast['f']}?", f"{cast['f']} is {cast['h']}'s {cast['fk']}."))
    if cast["ao"] in told.text and told.shape.things != "none":
        asked.append(("What thing is in the story?", f"There is {cast['ao']} in it."))
    question, answer = rng.choice(asked)
    return [("user", _roughen(rng, question)), ("assistant", answer)]


def _small_talk(rng: random.Random) -> list[Turn]:
    number = rng.randrange(len(_SMALL_TALK))
    asked, answers = _SMALL_TALK[number]
    text = rng.choice(asked)
    if number in (1, 3) and rng.random() < 0.3:
        text = f"{rng.choice(('Hello', 'Hi', 'Hey', 'Hi there'))}{rng.choice((', ', '! '))}{text[0].lower()}{text[1:]}"
    return [("user", _roughen(rng, text)), ("assistant", rng.choice(answers))]


def _other(rng: random.Random) -> list[Turn]:
    """A question that a storyteller cannot answer, with words that mean nothing, so that no topic is learned."""
    if rng.random() < 0.35:
        return [("user", _roughen(rng, foreign.sentence(rng))), ("assistant", rng.choice(_OTHER_ANSWERS))]
    words = [grammar.invented_name(rng, rng.random() < 0.5).lower() for _ in range(rng.randint(1, 4))]
    words += [foreign.noun(rng) for _ in range(rng.randint(0, 2))]
    words += rng.sample(["the", "a", "of", "in", "and", "7", "12", "2 + 2", "x"], rng.randint(0, 3))
    rng.shuffle(words)
    question = f"{rng.choice(_OTHER_HEADS)} {' '.join(words)}{rng.choice(('?', '.', ''))}"
    return [("user", question), ("assistant", rng.choice(_OTHER_ANSWERS))]


def conversation(rng: random.Random) -> str:
    """One ChatML conversation of one to three exchanges."""
    messages: list[Turn] = [("system", rng.choice(_SYSTEM))] if rng.random() < 0.2 else []
    openings: tuple[Callable[[random.Random], list[Turn]], ...] = (_small_talk, _other)
    roll = rng.random()
    if roll < 0.22:
        messages += openings[roll < 0.12](rng)
        if rng.random() < 0.5:
            return turns(messages)
    asked, told = request(rng)
    messages += [("user", asked), ("assistant", told.text)]
    roll = rng.random()
    if roll < 0.2:
        messages += _question(rng, told)
    elif roll < 0.35:
        messages += [("user", _roughen(rng, rng.choice(_AGAIN))), ("assistant", grammar.story(rng))]
    elif roll < 0.45:
        messages += _small_talk(rng)
    return turns(messages)

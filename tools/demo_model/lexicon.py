"""Words of the story grammar: names, places, things, roles and small word lists. Data only."""

from __future__ import annotations

from typing import NamedTuple

# fmt: off


class Setting(NamedTuple):
    """A kind of landscape: what a place there is called, where it lies, and spots that fit it."""

    kinds: tuple[str, ...]
    lies: tuple[str, ...]
    spots: tuple[str, ...]
    animal: bool


class Thing(NamedTuple):
    """A thing that a character can hold, with adjectives that suit it."""

    noun: str
    adjectives: tuple[str, ...]


class Role(NamedTuple):
    """What a hero can be besides a child or an animal; ``girl`` where the word itself says so."""

    noun: str
    girl: bool | None = None


class Mend(NamedTuple):
    """A thing that can break: what is seen (clause after the thing), what mends it, what it does afterwards."""

    noun: str
    adjectives: tuple[str, ...]
    broken: str
    cure: str
    after: str


GIRLS = tuple(
    """Mira Elsie Nora Tilda Juno Wren Hazel Ivy Marta Lina Odette Saskia Rosa Amina Freya Clara Pippa Greta Noor Leila
    Maya Sofia Anya Tess Bella Cora Daisy Edith Flora Ginny Hattie Ines Josie Kira Lotte Mabel Nell Olive Petra Ruby
    Selma Thea Una Vera Willa Yara Zelda Alma Birdie Dora Emma Lucy Anna Ella Lily Alice Mia Sara Jane Emily Sue Molly
    Priya Keiko Lucia Carmen Ada Ingrid Malia Zoe Fern Luna Poppy Suki Esther Ruth Agnes Beatrix Maggie""".split()
)
BOYS = tuple(
    """Tom Oskar Felix Hugo Jonas Emil Theo Ben Milo Otto Rafi Samir Leo Arlo Barney Casper Dario Edgar Finn Gus Henrik
    Idris Jasper Kofi Luca Mateo Niko Oren Pablo Quentin Rowan Silas Tobias Ulf Victor Wilbur Yusuf Zeke Albert Bruno
    Anton Pip Max Sam Jack Tim Peter Daniel Noah Oliver Henry Adam David Ravi Kenji Diego Omar Ivan Elias Marek Bjorn
    Cedric Duncan Ferris Gabriel Harold Isaac Joel Lionel Morris Ned Percy Rufus Simon Walter""".split()
)

# Syllables of invented names: they teach the model to copy any name a prompt brings.
NAME_STARTS = tuple(
    """Al Ar Bal Bel Bor Bran Cal Cor Dar Del Dor El Er Fal Fen Gal Gor Har Hel Il Is Jan Jor Kal Kel Kor Lan Lor Mal
    Mar Mel Mor Nar Nel Nor Or Pel Per Quin Ral Ren Ros Sal Sel Sor Tal Tar Ter Tor Ul Val Ver Wil Xan Yar Zan Zor Chi
    Sha Tho Kri Gri Pla Bri Sto Ka Ma Na Ra Sa Ta Jo Li Mi Zi Bo Lu Mu Du Ke""".split()
)
NAME_MIDDLES = tuple("ri la mo ne ta bi do va ki lo ru se da li na po za gu".split())
GIRL_ENDS = tuple("a ia ina elle ette issa ora wen lyn ita anna ola ise mi ra na la".split())
BOY_ENDS = tuple("o us en or ik an is ard win mund bert rin dor las ek os ton".split())

# Syllables of made words: almost any spelling that looks like a word.
ONSETS = tuple(
    """b c d f g h j k l m n p q r s t v w x y z bl br ch cl cr dr fl fr gl gr kn ph pl pr qu sc sh sk sl sm sn sp st
    str sw th tr tw wh wr thr shr""".split()
)
VOWELS = tuple("a e i o u a e i o u a e i o ai au ea ee ei eo ie oa oo ou ue y".split())
CODAS = tuple(
    """b ck d ff g l ll m n ng p r s ss t x z ble ch ct ft gle ld lf lk lm lp lt mb mp nd nk nt ple ps pt rd rk rl rm
    rn rp rt rth sh sk sp st tch th tle zz""".split()
)

PLACE_STARTS = tuple(
    """Willow Thistle Bramble Oak Maple Heather Fox Raven Stone Silver Amber Clover Fern Hazel Honey Juniper Marigold
    Moss Nettle Otter Pebble Pine Plum Poppy Robin Rose Salt Swallow Tansy Winter Summer Bell Candle Copper Drift Ember
    Feather Harbor Lark Mill""".split()
)
PLACE_ENDS = tuple("mere brook field ford dale hollow bridge haven wick combe well gate moor ham crest stead".split())

SETTINGS = (
    Setting(
        ("village", "town", "little town", "fishing village"),
        ("by the sea", "at the edge of the sea", "on a windy shore", "where the river meets the sea"),
        ("the harbor", "the lighthouse", "the old pier", "the beach", "the fish market", "the tide pools",
         "the boathouse", "the sea wall", "the sand dunes", "the rope maker's shed"),
        False,
    ),
    Setting(
        ("village", "town", "small town", "quiet village"),
        ("high in the mountains", "at the foot of a snowy mountain", "between two tall mountains",
         "on the side of a mountain"),
        ("the stone bridge", "the waterfall", "the pine trees", "the goat path", "the bell tower", "the old well",
         "the sawmill", "the sheep pen", "the shepherd's hut", "the frozen pond"),
        False,
    ),
    Setting(
        ("village", "town", "farming village", "sleepy village"),
        ("in a green valley", "among the apple orchards", "beside a slow river", "on the edge of the wheat fields"),
        ("the mill", "the market square", "the orchard", "the duck pond", "the wooden bridge", "the hay barn",
         "the bakery", "the village well", "the old oak tree", "the schoolhouse"),
        False,
    ),
    Setting(
        ("city", "old city", "busy city", "city of narrow streets"),
        ("on seven hills", "beside a wide river", "full of towers and bridges", "at the end of the railway"),
        ("the fountain", "the clock tower", "the railway station", "the flower market", "the library",
         "the tram stop", "the park gate", "the canal", "the museum steps", "the bakery on the corner"),
        False,
    ),
    Setting(
        ("forest", "quiet wood", "old forest", "mossy wood"),
        ("beyond the hills", "at the end of the long road", "where nobody ever hurried", "under the northern stars"),
        ("the stream", "the hollow log", "the berry bushes", "the tall pines", "the mossy stones", "the lily pond",
         "the beaver dam", "the fallen oak", "the fern glade", "the foxglove path"),
        True,
    ),
    Setting(
        ("meadow", "wide meadow", "sunny valley", "green marsh"),
        ("below the hills", "along a winding river", "far from any road", "where the wind always sang"),
        ("the stream", "the reeds", "the clover patch", "the stepping stones", "the bramble hedge", "the lily pond",
         "the old stone wall", "the crooked willow", "the muddy bank", "the daisy hill"),
        True,
    ),
)

ANIMALS = tuple("fox hedgehog mouse rabbit otter badger squirrel mole beaver hare raccoon bear cat dragon".split())
ANIMAL_ADJECTIVES = tuple(
    "small young little curious shy clever cheerful gentle brave dreamy patient quiet stubborn kind lively".split()
)
PEOPLE = (("girl", "boy"), ("girl", "boy"), ("girl", "boy"), ("young woman", "young man"), ("child", "child"))
WORKERS = tuple(
    """baker gardener fisher potter weaver painter farmer tailor carpenter sailor postman shepherd librarian teacher
    beekeeper cook inventor musician blacksmith ferryman""".split()
)
_ROLES = (
    "lighthouse keeper", "robot", "wizard", "knight", "pirate", "astronaut", "detective", "scientist", "doctor",
    "nurse",
    "soldier", "hunter", "fairy", "giant", "elf", "dwarf", "ghost", "captain", "explorer", "student", "clown",
    "magician",
    "singer", "dancer", "writer", "poet", "pilot", "engineer", "train driver", "shopkeeper", "miner", "thief", "judge",
    "goblin", "troll", "monster", "cowboy", "ninja", "alien", "mechanic", "chef", "programmer", "professor", "stranger",
    "traveler", "merchant", "fisherman", "woodcutter", "beggar", "jester", "ranger", "dentist", "toy maker", "monk",
)
_WOMEN = ("queen", "princess", "witch", "mermaid", "old woman", "waitress", "heroine", "duchess", "little girl", "lady")
_MEN = ("king", "prince", "wizard's apprentice", "old man", "waiter", "duke", "little boy", "fireman", "policeman",
          "man")
ROLES = (*map(Role, _ROLES), *(Role(noun, True) for noun in _WOMEN), *(Role(noun, False) for noun in _MEN))
TRAITS = tuple(
    """curious cheerful shy clever gentle brave dreamy patient quiet stubborn kind lively careful hopeful restless
    thoughtful serious bold polite impatient""".split()
)
ELDERS = tuple(
    """clockmaker baker miller ferryman librarian shepherd gardener toymaker blacksmith sailor beekeeper doctor tailor
    teacher lamplighter cobbler potter innkeeper fiddler mayor""".split()
)
ANIMAL_ELDERS = tuple("badger tortoise hare otter beaver bear raccoon mole".split())
FRIENDS = (
    ("friend", "friend"), ("best friend", "best friend"), ("neighbor", "neighbor"), ("oldest friend", "oldest friend"),
)
FAMILY = (("cousin", "cousin"), ("little sister", "little brother"), ("older sister", "older brother"))
KIN = tuple("grandmother grandfather mother father aunt uncle".split())

_WOOD = ("wooden", "painted", "old", "carved", "small")
_METAL = ("brass", "silver", "copper", "shiny", "old", "tiny")
_CLOTH = ("red", "blue", "green", "woolen", "striped", "warm", "yellow", "patched")
_COLOR = ("red", "blue", "green", "yellow", "orange", "purple", "white", "bright", "golden", "little")
_GLASS = ("glass", "blue", "green", "tiny", "clear")

THINGS = (
    Thing("kite", ("red", "blue", "yellow", "paper", "striped", "green")),
    Thing("lantern", ("brass", "old", "paper", "little", "red", "tin")),
    Thing("drum", ("little", "red", "painted", "old", "tin")),
    Thing("music box", ("tiny", "silver", "carved", "old", "painted")),
    Thing("compass", _METAL),
    Thing("teapot", ("blue", "white", "old", "painted", "tin", "round")),
    Thing("whistle", ("tin", "silver", "wooden", "brass", "little")),
    Thing("scarf", _CLOTH),
    Thing("umbrella", ("red", "yellow", "black", "green", "enormous", "striped", "old")),
    Thing("mirror", ("silver", "round", "old", "tiny", "cracked")),
    Thing("toy boat", _WOOD),
    Thing("clock", ("brass", "wooden", "little", "old", "round")),
    Thing("bell", _METAL),
    Thing("basket", ("willow", "round", "old", "little", "deep")),
    Thing("key", ("iron", "brass", "rusty", "tiny", "old")),
    Thing("spoon", ("wooden", "silver", "old", "carved")),
    Thing("hat", ("straw", "green", "tall", "felt", "red", "old")),
    Thing("mitten", _CLOTH),
    Thing("button", ("brass", "blue", "round", "shiny", "red")),
    Thing("marble", _GLASS),
    Thing("map", ("old", "folded", "faded", "hand drawn", "little")),
    Thing("flute", ("wooden", "silver", "reed", "old")),
    Thing("violin", ("old", "small", "brown", "borrowed")),
    Thing("paintbrush", ("old", "long", "fine", "wooden")),
    Thing("blanket", _CLOTH),
    Thing("locket", ("silver", "gold", "tiny", "old", "round")),
    Thing("coin", ("gold", "silver", "copper", "old", "lucky")),
    Thing("feather", ("white", "blue", "long", "golden", "grey")),
    Thing("shell", ("pink", "white", "spiral", "striped", "tiny")),
    Thing("thimble", ("silver", "brass", "old", "tiny")),
    Thing("book", ("blue", "old", "thick", "little", "green", "leather")),
    Thing("telescope", ("brass", "old", "long", "little")),
    Thing("toy train", ("red", "wooden", "tin", "little")),
    Thing("candle", ("white", "tall", "yellow", "stubby", "blue")),
    Thing("jar", _GLASS),
    Thing("lamp", _METAL),
    Thing("boot", ("left", "muddy", "green", "leather", "old")),
    Thing("ribbon", ("red", "blue", "silk", "yellow", "long")),
    Thing("ball", _COLOR),
    Thing("doll", ("rag", "wooden", "little", "old")),
    Thing("puppet", _WOOD),
    Thing("box", _WOOD),
    Thing("ring", ("silver", "gold", "plain", "tiny")),
    Thing("watch", ("gold", "silver", "old", "tiny")),
    Thing("pebble", ("white", "smooth", "round", "grey", "speckled")),
    Thing("acorn", ("golden", "little", "shiny", "perfect")),
    Thing("pencil", ("red", "blue", "short", "yellow")),
    Thing("notebook", ("blue", "green", "little", "old")),
    Thing("cup", ("blue", "tin", "white", "little", "cracked")),
    Thing("ladle", ("copper", "wooden", "long", "old")),
    Thing("wagon", ("red", "wooden", "little", "old")),
    Thing("flag", _COLOR),
    Thing("balloon", _COLOR),
    Thing("pillow", ("soft", "blue", "striped", "tiny")),
    Thing("rope", ("long", "strong", "old", "thick")),
    Thing("horn", ("brass", "silver", "old", "little")),
    Thing("quilt", ("patched", "warm", "blue", "old")),
    Thing("broom", ("old", "new", "little", "crooked")),
    Thing("rocking horse", _WOOD),
    Thing("top", ("red", "wooden", "painted")),
    Thing("stone", ("white", "smooth", "round", "blue", "lucky")),
    Thing("letter", ("folded", "long", "yellow", "old")),
    Thing("crown", ("paper", "golden", "silver", "tin")),
    Thing("sword", ("wooden", "toy", "tin")),
    Thing("guitar", ("old", "blue", "small")),
    Thing("bicycle", ("red", "blue", "old", "green")),
    Thing("camera", ("old", "little", "black")),
    Thing("sled", ("red", "wooden", "old")),
    Thing("ukulele", ("little", "old", "blue")),
    Thing("apron", _CLOTH),
    Thing("anchor", ("iron", "rusty", "tiny")),
    Thing("accordion", ("old", "red", "little")),
)
LIGHTS = (
    Thing("lantern", ("brass", "old", "paper", "little", "red", "tin")),
    Thing("lamp", ("oil", "brass", "little", "old")),
)
SOUNDERS = (
    Thing("bell", ("brass", "silver", "little", "old")),
    Thing("drum", ("little", "red", "painted", "old")),
    Thing("whistle", ("tin", "silver", "wooden", "brass")),
    Thing("horn", ("brass", "silver", "old", "little")),
    Thing("trumpet", ("brass", "old", "shiny", "little")),
)
SIGNALLERS = LIGHTS + SOUNDERS
MENDS = (
    Mend("kite", ("red", "blue", "paper", "striped"), "had a long tear in its side", "a patch cut from an old shirt",
         "flew higher than it ever had before"),
    Mend("lantern", ("brass", "old", "little"), "had a crack right through its glass", "a piece of colored glass",
         "threw blue and golden light on every wall"),
    Mend("music box", ("tiny", "silver", "carved"), "would not play a single note", "a new spring and a drop of oil",
         "played its tune more sweetly than before"),
    Mend("clock", ("brass", "wooden", "old"), "had stopped ticking in the night", "one small wheel from a broken toy",
         "ticked as steadily as a happy heart"),
    Mend("drum", ("little", "red", "painted"), "had split from edge to edge", "a new skin and a ring of strong cord",
         "boomed like friendly thunder"),
    Mend("umbrella", ("green", "yellow", "old"), "had turned inside out and snapped", "a thin willow branch",
         "opened with a cheerful snap"),
    Mend("toy boat", ("wooden", "painted", "blue"), "had lost its mast on the rocks",
    "a straight twig and a scrap of linen",
         "sailed across the water as proudly as a ship"),
    Mend("wagon", ("red", "wooden", "little"), "had lost one of its wheels", "a strong new wheel",
         "rolled down the lane without a single wobble"),
    Mend("teapot", ("blue", "white", "painted"), "had broken into three pieces", "a line of golden glue",
         "poured without spilling a drop"),
    Mend("rocking horse", ("wooden", "painted", "old"), "had a broken leg", "a strong peg of oak",
         "rocked back and forth without a sound"),
    Mend("flute", ("wooden", "reed", "old"), "had cracked along one side", "a thread of silk and some beeswax",
         "sang like a bird in spring"),
    Mend("puppet", ("wooden", "painted", "little"), "had lost all its strings", "seven strings of blue wool",
         "danced as if it were alive"),
    Mend("bicycle", ("red", "blue", "old"), "had a bent front wheel", "a wheel from an old cart",
         "rattled happily down every hill"),
    Mend("blanket", ("blue", "woolen", "striped"), "had a great hole in the middle", "a patch in the shape of a star",
         "was warmer than it had ever been"),
)

# Single words and short phrases that may be drawn again each time a template names the list.
WORDS: dict[str, tuple[str, ...]] = {
    "glad": ("glad", "happy", "delighted", "pleased", "proud", "grateful", "overjoyed"),
    "sad": ("sad", "worried", "troubled", "unhappy", "downcast"),
    "said": ("said", "said", "said", "answered", "replied"),
    "softly": ("softly", "quietly", "gently", "in a small voice", "with a smile", "at last"),
    "smiled": ("smiled", "laughed", "grinned", "began to laugh", "beamed"),
    "ran": ("ran", "hurried", "rushed", "raced"),
    "walked": ("walked", "wandered", "strolled", "set out", "went"),
    "treat": ("honey cake", "warm bread", "apple pie", "blackberry tart", "plum cake", "gingerbread", "cherry pie",
              "walnut cake", "fresh bread", "lemon cake", "cinnamon cake", "poppy seed cake"),
    "sky": ("the sky was pink", "the stars came out", "the moon was rising", "the first star was shining",
            "the lamps were being lit", "the evening was soft and warm", "the swallows were flying low"),
    "very": ("very", "so", "quite", "terribly"),
    "kindly": ("kindly", "gravely", "cheerfully", "slowly", "warmly"),
    "dish": ("vegetable soup", "plum cake", "honey bread", "mushroom stew", "apple pie", "berry jam", "pumpkin soup",
             "nut bread"),
    "seed": ("seed", "bean", "little brown seed", "strange round seed", "tiny black seed"),
    "bloom": ("sunflower", "pear tree", "rose bush", "blue lily", "pumpkin vine", "cherry tree", "bean vine"),
}

BABIES = ("a tiny kitten", "a lost puppy", "a baby squirrel", "a little duckling", "a young hedgehog", "a baby rabbit",
          "a sleepy mouse", "a fluffy chick", "a young lamb")
WILD_BABIES = ("a tiny chick", "a little duckling", "a baby bird", "a young frog", "a baby owl", "a sleepy bat")
CREATURES = tuple("dragon cat dog horse unicorn pony puppy kitten parrot goat owl turtle whale pig lamb donkey bear "
"wolf lion "
                  "elephant monkey penguin giraffe ghost robot dinosaur monster fairy giant".split())
STRAYS = tuple("dragon unicorn goat turtle bear wolf lion monkey penguin pony donkey pig".split())
CREATURE_ADJECTIVES = ("small", "little", "young", "shy", "grey", "white", "lonely", "strange")
ODD_THINGS = tuple("cake pie egg flower star tree house ship car cloud carrot apple potion wand chair window spaceship "
                   "computer guitar hammer cookie pumpkin snowball painting piano sandwich tower moon garden".split())
ODD_ADJECTIVES = ("little", "old", "strange", "beautiful", "blue", "red", "golden", "perfect", "curious")

# What does not fit into a pocket or a bag, and what is too soft to crack.
BIG = frozenset("bicycle wagon sled guitar quilt anchor accordion pillow broom".split()) | {"rocking horse"}
SOFT = frozenset("kite scarf map blanket feather ribbon rope quilt letter flag balloon pillow apron hat mitten book "
"notebook "
                 "ball coin thimble pebble stone acorn boot broom crown button".split())
PROPS = ("a clay pot", "an old cup", "a wooden box", "a blue pot")
TRAPS = ("an old jar", "a tin can", "a broken basket", "an old boot", "an empty honey pot", "a flower pot")
INSTRUMENTS = ("a violin", "a trumpet", "a flute", "an accordion", "a tuba", "an old guitar")
WRAPS = ("scarf", "coat", "blanket", "sweater")
MOODS = tuple("curious cheerful patient generous careful hopeful stubborn".split())
SIGNALS = {"bell": "rang it", "drum": "beat it", "whistle": "blew it", "horn": "blew it", "trumpet": "blew it"}

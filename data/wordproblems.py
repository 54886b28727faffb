"""Word problems that this project generates, modelled on the paper's six math sets.

Five kinds train the pocket models from scratch. The sixth, MultiArith's two steps (add or subtract,
then divide or multiply), is held out for an adapter to learn. A problem is put together from
sentence forms (wordforms.toml), names and numbers:

    opening      "Emma baked 12 pies and 9 cakes."
    condition    "Each tray holds 3."
    question     "How many trays does Emma need?"

A hash of its question decides whether a problem is for training or for tests.
"""

import hashlib
import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

TABLES = tomllib.loads((Path(__file__).parent / "wordforms.toml").read_text(encoding="utf-8"))
NAMES, THINGS, BOXES = (TABLES[key].split() for key in ("names", "things", "boxes"))
GOODS = TABLES["goods"].split()  # held-out kind only; pretraining shows the words, not the use
FORMS = SimpleNamespace(**TABLES)  # FORMS.have, FORMS.more ...: lists of sentence forms

LARGEST = 130  # numbers up to here are single tokens of the pocket tokenizer


def one_of(box: str) -> str:
    """trays -> tray, boxes -> box, shelves -> shelf."""
    return {"boxes": "box", "shelves": "shelf"}.get(box, box[:-1])


# ---------------------------------------------------------------- the five trained kinds
class Draw:
    """One problem's names, words and numbers, and the sums it asks for."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.slots: dict = {}
        self.slots["N"], self.slots["M"] = rng.sample(NAMES, 2)
        self.slots["t"], self.slots["u"] = rng.sample(THINGS, 2)
        self.slots["k"] = rng.choice(BOXES)
        self.used: list[str] = []

    def small(self) -> int:
        return self.rng.randint(2, 6)

    def plain(self) -> int:
        return self.rng.randint(2, 20)

    def pick(self, *tables: list[str]) -> str:
        """One form from each table, filled in, as one text."""
        forms = [self.rng.choice(table) for table in tables]
        self.used += forms
        return " ".join(form.format(**self.slots) for form in forms)


def add_or_subtract(draw: Draw) -> tuple[list[str], str, int]:
    """Draw {a} and its change by {b}: (the forms that tell it, its solution, its result)."""
    a, b = draw.plain(), draw.plain()
    more = draw.rng.random() < 0.5
    if not more:
        a += b
    draw.slots |= {"a": a, "b": b}
    change, line, result = FORMS.more, f"{a} + {b} = {a + b}", a + b
    if not more:
        change, line, result = FORMS.less, f"{a} - {b} = {a - b}", a - b
    return change, f"{draw.slots['N']} has {line} {draw.slots['t']}.", result


def addsub(draw: Draw) -> tuple[str, str, int]:
    change, solution, result = add_or_subtract(draw)
    return draw.pick(FORMS.have, change, FORMS.now), solution, result


def singleeq(draw: Draw) -> tuple[str, str, int]:
    a, b = draw.small(), draw.plain()
    if draw.rng.random() < 0.5:
        a, b = (a, b) if draw.rng.random() < 0.5 else (b, a)
        draw.slots |= {"a": a, "b": b}
        solution = f"There are {a} * {b} = {a * b} {draw.slots['t']}."
        return draw.pick(FORMS.groups, FORMS.in_all), solution, a * b
    draw.slots |= {"a": a * b, "b": a}
    solution = f"Each gets {a * b} / {a} = {b} {draw.slots['t']}."
    return draw.pick(FORMS.share, FORMS.each), solution, b


def svamp(draw: Draw) -> tuple[str, str, int]:
    change, solution, result = add_or_subtract(draw)
    draw.slots["d"] = draw.plain()
    first, second = FORMS.aside, FORMS.have
    if draw.rng.random() < 0.5:
        first, second = second, first
    return draw.pick(first, second, change, FORMS.now), solution, result


def gsm8k(draw: Draw) -> tuple[str, str, int]:
    a, b, c = draw.small(), draw.plain(), draw.plain()
    more = (draw.rng.random() < 0.5 or a * b - c < 2) and a * b + c <= LARGEST
    result = a * b + c if more else a * b - c
    draw.slots |= {"a": a, "b": b}
    story = draw.pick(FORMS.groups)
    draw.slots["b"] = c
    story += " " + draw.pick(FORMS.more if more else FORMS.less, FORMS.now)
    sign = "+" if more else "-"
    return story, f"First, {a} * {b} = {a * b}. Then, {a * b} {sign} {c} = {result}.", result


def aqua(draw: Draw) -> tuple[str, str, str]:
    """A one-step problem with five choices; the answer is the letter of the right one."""
    story, solution, result = addsub(draw)
    others = draw.rng.sample([n for n in range(max(1, result - 9), result + 10) if n != result], 4)
    choices = [result, *others]
    draw.rng.shuffle(choices)
    letter = "ABCDE"[choices.index(result)]
    return f"{story} {spell(choices)}", f"{solution} That is ( {letter} ).", letter


def spell(choices: list[int]) -> str:
    return " ".join(f"( {x} ) {number}" for x, number in zip("ABCDE", choices, strict=True))


# ---------------------------------------------------------------- the held-out kind
# An opening is a head and a tail. Every head goes with every tail, every condition with every
# question.
# (heads, tails, conditions, questions, first step, second step)
MULTIARITH = [
    (FORMS.baked, FORMS.more_baked, FORMS.fit, FORMS.need, "+", "/"),
    (FORMS.baked, FORMS.eaten, FORMS.fit, FORMS.need, "-", "/"),
    (FORMS.packed, FORMS.more_packed, FORMS.hold, FORMS.count, "+", "*"),
    (FORMS.packed, FORMS.lost, FORMS.hold, FORMS.count, "-", "*"),
]


def pair(draw: Draw, lefts: list[str], rights: list[str], unseen: bool) -> tuple[str, str]:
    """One form of each table. Every fourth pair is in neither training nor the seen test set:
    these are the unseen templates."""
    while True:
        i, j = draw.rng.randrange(len(lefts)), draw.rng.randrange(len(rights))
        if ((i + j) % 4 == 0) == unseen:
            return lefts[i], rights[j]


def multiarith(draw: Draw, unseen: bool = False) -> tuple[str, str, int]:
    """The held-out kind. unseen: an opening and a pair of condition and question that training
    never shows."""
    heads, tails, conditions, questions, first, second = draw.rng.choice(MULTIARITH)
    slots = draw.slots
    slots["g"], slots["h"] = draw.rng.sample(GOODS, 2)
    slots["K"] = one_of(slots["k"])
    slots["a"], slots["b"], slots["c"], middle, result = two_steps(draw, first, second)
    opening = "".join(pair(draw, heads, tails, unseen))
    story = draw.pick([opening], *([form] for form in pair(draw, conditions, questions, unseen)))
    steps = (
        f"First, {slots['a']} {first} {slots['b']} = {middle}. "
        f"Then, {middle} {second} {slots['c']} = {result}."
    )
    return story, steps, result


def two_steps(draw: Draw, first: str, second: str) -> tuple[int, int, int, int, int]:
    """Numbers a, b, c with (a first b) second c whole and in range, with both results."""
    while True:
        a, b, c = draw.plain(), draw.plain(), draw.small()
        if first == "-":
            a += b
        middle = a + b if first == "+" else a - b
        if second == "*" and middle * c <= LARGEST:
            return a, b, c, middle, middle * c
        if second == "/" and middle % c == 0 and middle > c:
            return a, b, c, middle, middle // c


# ---------------------------------------------------------------- problems by kind
MANNERS = {kind.__name__: kind for kind in (addsub, singleeq, svamp, gsm8k, aqua, multiarith)}
TRAINED = {"addsub": 3, "singleeq": 2, "svamp": 4, "gsm8k": 3, "aqua": 2}  # share in pretraining
HELD_OUT = "multiarith"


def side(question: str) -> str:
    """ "test" for one question in eight, "train" for the rest, by a hash of its text."""
    return "test" if hashlib.sha256(question.encode()).digest()[0] < 32 else "train"


def problems(manner: str, which: str, seed: int) -> Iterator[dict]:
    """Endless distinct problems {instruction, output, answer, manner, template} of one kind.

    manner: a key of MANNERS, or "multiarith-unseen". which: "train" or "test". The output is a
    rationale that ends in "The answer is X."
    """
    name, unseen = manner.removesuffix("-unseen"), manner.endswith("-unseen")
    rng = random.Random(f"{manner} {which} {seed}")
    seen: set[str] = set()
    while True:
        draw = Draw(rng)
        story, steps, answer = MANNERS[name](draw, unseen=True) if unseen else MANNERS[name](draw)
        if story not in seen and side(story) == which:
            seen.add(story)
            yield {
                "instruction": story,
                "output": f"{steps} The answer is {answer}.",
                "answer": str(answer),
                "manner": manner,
                "template": " ".join(draw.used),
            }

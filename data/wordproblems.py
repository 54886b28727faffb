"""Word problems this project writes itself, in the manner of the paper's six math sets.

Five manners train the pocket models from scratch; the sixth, MultiArith's two steps (add or subtract, then divide or
multiply), is held out for an adapter to learn. A problem is put together from sentence forms, names and numbers:

    opening      "Emma baked 12 pies and 9 cakes."
    condition    "Each tray holds 3."
    question     "How many trays does Emma need?"

Which side a problem is on - train or test - is decided by a hash of its question, so no question is ever on both.
"""

import hashlib
import random
from collections.abc import Iterator

NAMES = """Adam Alice Amy Anna Ben Bob Carl Cora Dan Dora Ella Emma Eric Eva Finn Fred Gina Hugo Ida Ivan Jack Jane
John Kate Leo Lily Lucy Mark Mary Max Mia Nina Noah Olga Omar Paul Rosa Ruth Sam Sara Tina Tom Vera Will Zoe""".split()
THINGS = """apples balls beads books buttons cards coins eggs flowers keys lemons marbles nuts peaches pears pencils
pens plums roses shells stamps stickers stones toys""".split()
BOXES = "bags baskets boxes bowls cups jars packs plates trays shelves".split()

# Held-out manner only (the pretraining text shows the words, never the pattern).
GOODS = "pies cakes muffins tarts buns rolls scones waffles".split()

LARGEST = 130  # numbers up to here are single tokens of the pocket tokenizer


def one_of(box: str) -> str:
    """trays -> tray, boxes -> box, shelves -> shelf."""
    return {"boxes": "box", "shelves": "shelf"}.get(box, box[:-1])


# ---------------------------------------------------------------- the five trained manners
# A form is filled with {N} {M} names, {t} {u} things, {k} containers, {a} {b} {c} numbers.

HAVE = [
    "{N} has {a} {t}.",
    "{N} starts with {a} {t}.",
    "{N} owns {a} {t}.",
    "{N} found {a} {t}.",
    "There are {a} {t} in the house of {N}.",
    "{N} got {a} {t} from {M}.",
]
MORE = [
    "{M} gives {N} {b} more.",
    "{N} buys {b} more.",
    "Then {N} finds {b} more.",
    "{N} gets {b} more {t}.",
    "{M} brings {b} more.",
]
LESS = [
    "{N} gives {b} to {M}.",
    "{N} loses {b} of them.",
    "{N} sells {b} of them.",
    "Then {M} takes {b} away.",
    "{N} uses {b} {t}.",
]
NOW = [
    "How many {t} does {N} have now?",
    "How many {t} are there now?",
    "What is the number of {t} now?",
    "Find how many {t} {N} has now.",
]
GROUPS = [
    "There are {a} {k} with {b} {t} in each.",
    "{N} has {a} {k} of {b} {t}.",
    "{N} owns {a} {k} and each has {b} {t}.",
    "{N} puts {a} {t} into each of {b} {k}.",
]
IN_ALL = [
    "How many {t} are there in all?",
    "How many {t} does {N} have in all?",
    "What is the total number of {t}?",
    "Find the number of {t}.",
]
SHARE = [
    "{N} shares {a} {t} among {b} friends.",
    "All {a} {t} are shared among {b} children.",
    "{N} splits {a} {t} into {b} parts.",
    "{N} puts {a} {t} into {b} equal piles.",
]
EACH = [
    "How many {t} does each get?",
    "How many {t} are in each part?",
    "Find how many {t} there are for each one.",
]
ASIDE = [
    "{N} also has {d} {u}.",
    "{M} has {d} {u}.",
    "There are {d} {u} too.",
    "{M} also got {d} {u}.",
]


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
    """Draw {a} and its change by {b}: (the forms that tell it, the sum as text, its result)."""
    a, b = draw.plain(), draw.plain()
    more = draw.rng.random() < 0.5
    if not more:
        a += b
    draw.slots |= {"a": a, "b": b}
    return (MORE, f"{a} + {b} = {a + b}", a + b) if more else (LESS, f"{a} - {b} = {a - b}", a - b)


def addsub(draw: Draw) -> tuple[str, str, int]:
    change, line, result = add_or_subtract(draw)
    return draw.pick(HAVE, change, NOW), f"{draw.slots['N']} has {line} {draw.slots['t']}.", result


def singleeq(draw: Draw) -> tuple[str, str, int]:
    a, b = draw.small(), draw.plain()
    if draw.rng.random() < 0.5:
        a, b = (a, b) if draw.rng.random() < 0.5 else (b, a)
        draw.slots |= {"a": a, "b": b}
        return draw.pick(GROUPS, IN_ALL), f"There are {a} * {b} = {a * b} {draw.slots['t']}.", a * b
    draw.slots |= {"a": a * b, "b": a}
    return draw.pick(SHARE, EACH), f"Each gets {a * b} / {a} = {b} {draw.slots['t']}.", b


def svamp(draw: Draw) -> tuple[str, str, int]:
    change, line, result = add_or_subtract(draw)
    draw.slots["d"] = draw.plain()
    order = [HAVE, ASIDE, change] if draw.rng.random() < 0.5 else [ASIDE, HAVE, change]
    return draw.pick(*order, NOW), f"{draw.slots['N']} has {line} {draw.slots['t']}.", result


def gsm8k(draw: Draw) -> tuple[str, str, int]:
    a, b, c = draw.small(), draw.plain(), draw.plain()
    more = (draw.rng.random() < 0.5 or a * b - c < 2) and a * b + c <= LARGEST
    result = a * b + c if more else a * b - c
    draw.slots |= {"a": a, "b": b}
    story = draw.pick(GROUPS)
    draw.slots["b"] = c
    story += " " + draw.pick(MORE if more else LESS, NOW)
    return (
        story,
        f"First, {a} * {b} = {a * b}. Then, {a * b} {'+' if more else '-'} {c} = {result}.",
        result,
    )


def aqua(draw: Draw) -> tuple[str, str, str]:
    """A one-step problem with five choices; the answer is the letter of the right one."""
    change, line, result = add_or_subtract(draw)
    story = draw.pick(HAVE, change, NOW)
    others = draw.rng.sample([n for n in range(max(1, result - 9), result + 10) if n != result], 4)
    choices = [result, *others]
    draw.rng.shuffle(choices)
    letter = "ABCDE"[choices.index(result)]
    return (
        f"{story} {spell(choices)}",
        f"{draw.slots['N']} has {line} {draw.slots['t']}. That is ( {letter} ).",
        letter,
    )


def spell(choices: list[int]) -> str:
    return " ".join(
        f"( {letter} ) {number}" for letter, number in zip("ABCDE", choices, strict=True)
    )


# ---------------------------------------------------------------- the held-out manner
# An opening is a head and a tail; every head goes with every tail, every condition with every question.

BAKED = [
    "{N} baked {a} {g}",
    "{N} made {a} {g}",
    "{N} ordered {a} {g}",
    "There were {a} {g} at the party",
    "{M} baked {a} {g} for {N}",
    "The oven of {N} gave {a} {g}",
    "{N} set out {a} {g}",
    "The shop sent {N} {a} {g}",
]
MORE_BAKED = [
    " and {b} {h}.",
    " and then {b} more.",
    ". {M} baked {b} more.",
    ", then also {b} {h}.",
    " and {M} brought {b}.",
    " at noon and {b} at night.",
    ". The next day there were {b} more.",
    " plus {b} {h}.",
]
EATEN = [
    " but {b} burned.",
    " and ate {b}.",
    " and sold {b} of them.",
    " but {b} fell down.",
    ". The guests ate {b}.",
    " but {M} took {b} home.",
    ". Then {b} were bad.",
    " but dropped {b}.",
]
PACKED = [
    "{N} filled {a} {k}",
    "{N} packed {a} {k}",
    "{N} ordered {a} {k}",
    "There were {a} {k} at the party",
    "{M} packed {a} {k} for {N}",
    "The room of {N} has {a} {k}",
    "{N} set out {a} {k}",
    "The shop sent {N} {a} {k}",
]
MORE_PACKED = [
    " and {b} other {k}.",
    " and then {b} more.",
    ". {M} packed {b} more.",
    ", then also {b} big {k}.",
    " and {M} brought {b}.",
    " at noon and {b} at night.",
    ". The next day there were {b} more.",
    " plus {b} blue {k}.",
]
LOST = [
    " but {b} were empty.",
    " and broke {b}.",
    " and sold {b} of them.",
    " but {b} fell down.",
    ". The guests broke {b}.",
    " but {M} took {b} home.",
    ". Then {b} were lost.",
    " but dropped {b}.",
]

FIT = [
    "Each {K} holds {c}.",
    "Now {c} fit into each {K}.",
    "They go into {k} of {c}.",
    "{N} puts {c} into each {K}.",
    "There is room for {c} in one {K}.",
    "A {K} takes {c} of them.",
]
NEED = [
    "How many {k} does {N} need?",
    "How many {k} are there?",
    "What is the number of {k}?",
    "Find how many {k} {N} fills.",
    "How many {k} are filled?",
    "So how many {k} will {N} use?",
]
HOLD = [
    "Each {K} holds {c} {g}.",
    "There are {c} {g} in each {K}.",
    "{N} puts {c} {g} into each {K}.",
    "Every {K} has {c} {g} in it.",
    "A {K} takes {c} {g}.",
    "They hold {c} {g} each.",
]
COUNT = [
    "How many {g} are there?",
    "How many {g} does {N} have?",
    "What is the number of {g}?",
    "Find how many {g} there are.",
    "How many {g} is that in all?",
    "So how many {g} are there now?",
]

# (heads, tails, conditions, questions, first step, second step)
MULTIARITH = [
    (BAKED, MORE_BAKED, FIT, NEED, "+", "/"),
    (BAKED, EATEN, FIT, NEED, "-", "/"),
    (PACKED, MORE_PACKED, HOLD, COUNT, "+", "*"),
    (PACKED, LOST, HOLD, COUNT, "-", "*"),
]


def pair(draw: Draw, lefts: list[str], rights: list[str], unseen: bool) -> tuple[str, str]:
    """One form of each list. Every fourth pairing is left out of training and of the seen test: those are the unseen templates."""
    while True:
        i, j = draw.rng.randrange(len(lefts)), draw.rng.randrange(len(rights))
        if ((i + j) % 4 == 0) == unseen:
            return lefts[i], rights[j]


def multiarith(draw: Draw, unseen: bool = False) -> tuple[str, str, int]:
    """The held-out manner. unseen=True: an opening and a pair of condition and question that training never shows."""
    heads, tails, conditions, questions, first, second = draw.rng.choice(MULTIARITH)
    slots = draw.slots
    slots["g"], slots["h"] = draw.rng.sample(GOODS, 2)
    slots["K"] = one_of(slots["k"])
    slots["a"], slots["b"], slots["c"], middle, result = two_steps(draw, first, second)
    opening = "".join(pair(draw, heads, tails, unseen))
    story = draw.pick([opening], *([form] for form in pair(draw, conditions, questions, unseen)))
    steps = f"First, {slots['a']} {first} {slots['b']} = {middle}. Then, {middle} {second} {slots['c']} = {result}."
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


# ---------------------------------------------------------------- problems by manner
MANNERS = {
    "addsub": addsub,
    "singleeq": singleeq,
    "svamp": svamp,
    "gsm8k": gsm8k,
    "aqua": aqua,
    "multiarith": multiarith,
}
TRAINED = {
    "addsub": 3,
    "singleeq": 2,
    "svamp": 4,
    "gsm8k": 3,
    "aqua": 2,
}  # manner -> share in pretraining
HELD_OUT = "multiarith"


def side(question: str) -> str:
    """ "test" for one question in eight, "train" for the rest, by a hash of its text."""
    return "test" if hashlib.sha256(question.encode()).digest()[0] < 32 else "train"


def problems(manner: str, which: str, seed: int) -> Iterator[dict]:
    """Endless distinct problems {instruction, output, answer, manner, template} of one manner and side.

    manner is a key of MANNERS or "multiarith-unseen"; which is "train" or "test". The rationale ends in "The answer is X."
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


# ---------------------------------------------------------------- other lines of the pretraining text
def sums(rng: random.Random, count: int = 6) -> list[tuple[str, str]]:
    """(question, result) pairs of plain sums in the problems' own ranges: ("7 + 9 =", "16")."""
    pairs = []
    for _ in range(count):
        kind = rng.choice("+-*/")
        a, b, c = rng.randint(2, 20), rng.randint(2, 20), rng.randint(2, 6)
        if kind == "+":
            big = a * c if a * c + b <= LARGEST and rng.random() < 0.65 else a
            pairs.append((f"{big} + {b} =", str(big + b)))
        elif kind == "-":
            big = a * c if a * c > b + 1 and rng.random() < 0.65 else a + b
            pairs.append((f"{big} - {b} =", str(big - b)))
        else:
            n = (
                rng.choice([a, rng.randint(2, 40)])
                if kind == "/"
                else rng.choice([a, rng.randint(2, LARGEST // c)])
            )
            n = min(n, LARGEST // c)
            left, right = (n, c) if rng.random() < 0.7 else (c, n)
            pairs.append(
                (f"{left} * {right} =", str(n * c)) if kind == "*" else (f"{n * c} / {c} =", str(n))
            )
    return pairs


def walk(rng: random.Random) -> list[tuple[str, str]]:
    """A walk through answer choices: the choices and a number, then the letter it stands behind."""
    choices = rng.sample(range(2, 41), 5)
    number = rng.choice(choices)
    return [(f"{spell(choices)} : {number} is", f"( {'ABCDE'[choices.index(number)]} )")]


CLAUSES = [
    "{N} baked {a} {g}.",
    "{N} made {h}.",
    "{g} and {h} for the party.",
    "{N} bakes {g} and then {h}.",
    "The guests ate {b} {g}.",
    "The oven of {N} gave {a} {g}.",
    "{N} ordered {a} {g}, also {h}.",
    "Then {b} burned.",
    "{N} ate and dropped {b}.",
    "But {b} {g} fell down.",
    "The {g} of {N} were bad.",
    "{N} filled {a} {k} at noon.",
    "{N} came at night.",
    "The next day there were {k}.",
    "{N} has blue {k} plus big {k}.",
    "{N} packed {k} for {M}.",
    "The shop sent {k}.",
    "{M} brought {a} {k}.",
    "{N} set out {a} {k}.",
    "{N} had {k} but broke {b}.",
    "{M} took {b} home.",
    "The guests broke {b}.",
    "Then {b} {k} were empty.",
    "They were lost.",
    "{N} sold other {k}.",
    "This {K} holds {a}.",
    "Now {a} fit into a {K}.",
    "They go into {k}.",
    "There is room for {a} in one {K}.",
    "A {K} takes {g}.",
    "What does {N} need?",
    "{N} fills a {K}.",
    "Every {K} has {g} in it.",
    "They hold {g} each.",
    "How many {g} is that?",
    "The {k} are filled.",
    "So {N} will use a {K}.",
    "{N} puts {g} into each {K}.",
    "The room of {N} has {k}.",
]


def clauses(rng: random.Random, count: int) -> str:
    """Sentences with the held-out manner's words and none of its two-step pattern."""
    draw = Draw(rng)
    goods = rng.sample(GOODS, 2)
    sentences = []
    for form in rng.sample(CLAUSES, count):
        draw.slots |= {
            "g": goods[0],
            "h": goods[1],
            "K": one_of(draw.slots["k"]),
            "a": draw.plain(),
            "b": draw.plain(),
        }
        sentences.append(draw.pick([form]))
    return " ".join(sentences)

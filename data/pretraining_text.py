"""Lines of the pocket models' pretraining text besides the word problems."""

import random

from data.wordproblems import FORMS, GOODS, LARGEST, Draw, one_of, spell


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
            largest = 40 if kind == "/" else LARGEST // c
            n = min(rng.choice([a, rng.randint(2, largest)]), LARGEST // c)
            left, right = (n, c) if rng.random() < 0.7 else (c, n)
            product = f"{left} * {right} =", str(n * c)
            pairs.append(product if kind == "*" else (f"{n * c} / {c} =", str(n)))
    return pairs


def walk(rng: random.Random) -> list[tuple[str, str]]:
    """A walk through answer choices: the choices and a number, then the letter of that choice."""
    choices = rng.sample(range(2, 41), 5)
    number = rng.choice(choices)
    return [(f"{spell(choices)} : {number} is", f"( {'ABCDE'[choices.index(number)]} )")]


def clauses(rng: random.Random, count: int) -> str:
    """Sentences with the held-out manner's words and none of its two-step pattern."""
    draw = Draw(rng)
    draw.slots["g"], draw.slots["h"] = rng.sample(GOODS, 2)
    draw.slots["K"] = one_of(draw.slots["k"])
    sentences = []
    for form in rng.sample(FORMS.clauses, count):
        draw.slots |= {"a": draw.plain(), "b": draw.plain()}
        sentences.append(draw.pick([form]))
    return " ".join(sentences)

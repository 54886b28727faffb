"""Which option letter or digit a text chooses: A to J, a to d, A to D with 1 to 4."""

import re
from dataclasses import dataclass
from functools import lru_cache

from eval.announced import ANSWER, own_text, sentence_and_rest, statements, without_denials

# What may follow an option letter that is also a word ("a car", "I think").
GOES_ON = r"(?:is|because|since|as|and|or|but|for|from|with|which)\b"
CONCLUDES = (
    r"(?i:\b(?:so|thus|hence|therefore|it is|it's|must be|should be|i'd say"
    r"|i would say|i think|i believe|i guess|my guess is)\b,?:?)"
)
PUTS_FORWARD = (
    r"(?i:\b(?:options?|choices?|letters?|choose|pick|select|go(?:ing)? with|opt for|answer)\b)"
)
ALSO_ANSWER = re.compile(  # these announce an option, too
    rf"{ANSWER.pattern}|\b(?:correct|right|best)(?: one)?\s?(?:is\b\s?:?|:)"
    r"|\b(?:solution|final|response|prediction|label|choice|option|letter|selected|selection"
    r"|output|key)\s?:",
    re.IGNORECASE,
)
PUTS_BEFORE = re.compile(  # words that a letter may follow where an answer is announced
    r"(?i)(?:^|[^\w\s'’-]|\b(?:options?|choices?|answers?|letters?|is|are|was|be|but|so|thus|hence"
    r"|therefore|pick|choose|select|to|with|as|and|or|either|namely|the|number|think|believe"
    r"|say|guess))\s?$"
)
LONGEST_OPTION = 120  # characters between options that a text repeats


@dataclass(frozen=True)
class Letters:
    """The patterns for one set of letters and digits."""

    labels: dict[str, str]  # casefolded -> as the data spells it
    start: re.Pattern  # at the beginning of a statement
    head: re.Pattern  # at the beginning of a text, before an explanation
    inside: re.Pattern  # within a statement
    mention: re.Pattern  # put forward without an announcement
    marker: re.Pattern  # before an option that is repeated
    wrong: re.Pattern  # called wrong


@lru_cache
def patterns(letters: tuple[str, ...]) -> Letters:
    """letters: as the data spells them, perhaps in brackets ("(A)")."""
    labels = {re.sub(r"[\W_]", "", label).casefold(): label for label in letters}
    small = "".join(labels)
    large = "".join(dict.fromkeys(small.upper()))
    x = f"[{''.join(dict.fromkeys(small + large))}]"  # in any case
    bracketed = rf"(?<!\w)(?:\(({x})\)|\[({x})\])"
    # A separate letter neither ends a word or number ("37 C") nor begins one ("A's", "3.5"), and is
    # not an article or a pronoun.
    before, after = r"(?<![\w'’°.,$])(?<!\w-)(?<!\d )", r"(?![\w'’%]|-\w|[.,]\d)"
    pronoun = r"(?:(?<!I)|(?! (?!is\b|because\b|since\b)\w))"
    article = rf"(?:(?<![AI{small}])|(?! (?!{GOES_ON})[^\W\d]))"
    bare = rf"{before}({x}){after}{article}{pronoun}"
    upright = rf"{before}([{large}]){after}{article}{pronoun}"
    ends = r"[.,:;)\]!}]{0,2}(?:\s?$|\s?\n)"
    stops = rf"{ends}|[.:;)\]]{{1,2}}\s|,\s(?!I)|\s[^\w\s\"'“‘]|\s{GOES_ON}"
    explains = (
        r"[).\]:]{1,2}(?=\s|$)|[)\]:](?=[\dA-Z])|\s[–—-]\s|\s?[.!]?(?:$|\n)"
        rf"|(?<![AI]),\s(?!(?:and |or )?{x}\b)|(?<!I)[,;]? (?:because|since|as)\b"
    )
    also = rf"(?:(?:,? ?(?:and |or )?|, )[(\[]?{x}[)\]]?,? ){{1,9}}"
    return Letters(
        labels=labels,
        start=re.compile(
            r"\s?(?i:(?:the )?(?:option |choice |letter |answer |number )?)"
            rf"(?:{bracketed}|({x})(?={stops}){pronoun})"
        ),
        head=re.compile(rf"\s?(?:{bracketed}(?=[.:]?(?:\s|$))|({x})(?:{explains}))"),
        inside=re.compile(rf"{bracketed}|{upright}"),
        mention=re.compile(
            rf"{bracketed}|{PUTS_FORWARD}(?: is)?:?(?: [–—-])? {bare}"
            rf"|{CONCLUDES} (?:option |choice )?{bare}(?=[.!]?(?:\s?$|\n|\. ))"
            rf"|(?m:^({x})[.)]{{0,2}}$)"
        ),
        marker=re.compile(
            rf"(?<!\w)[(\[]?({x})[).:\]](?=\s|\w)(?! (?:is|are|was|would|can|does|has)\b)"
        ),
        wrong=re.compile(
            rf"(?i:(?:the )?(?:(?:options?|choices?|answers?) )?)[(\[]?{x}[)\]]?,? "
            rf"(?i:(?:is|was|seems|looks|can be)|{also}(?:are|were|can be)) "
            r"(?i:(?:clearly |obviously |all |both |also )?"
            r"(?:wrong|incorrect|false|excluded|ruled out|eliminated))\b"
        ),
    )


def strict_letter(text: str, letters: tuple[str, ...]) -> str | None:
    """The option letter that `text` chooses, spelled as in `letters`, or None.

    What is announced last counts; else a letter that the text begins with ("B. 4"), unless it tells
    several options again; else the last one put forward: in brackets, as an option, concluded
    ("so C"), or on a line of its own. In any case; articles and pronouns do not count.
    """
    pattern = patterns(letters)
    text = own_text(text, lambda line: is_only_letter(line, pattern))
    text = without_denials(pattern.wrong.sub("", without_options(text, pattern)))
    announced = statements(text, ALSO_ANSWER)
    found = (stated_letter(stated, pattern) for stated in announced)
    chosen = next(filter(None, found), None) if announced else mentioned_letter(text, pattern)
    return pattern.labels[chosen.casefold()] if chosen else None


def is_only_letter(line: str, pattern: Letters) -> bool:
    match = pattern.start.match(line)
    return match is not None and not line[match.end() :].strip(" .)!]")


def group_of(match: re.Match) -> str:
    return match[match.lastindex]


def stated_letter(stated: str, pattern: Letters) -> str | None:
    """The letter of what follows a trigger: the first of its sentence, else one that the next
    sentences put forward."""
    sentence, rest, _ = sentence_and_rest(stated)
    first = pattern.start.match(stated.strip()) or pattern.start.match(sentence)
    if first:
        return group_of(first)
    for match in pattern.inside.finditer(sentence):
        begin = match.start(match.lastindex)
        in_brackets = match[0] != group_of(match)
        if in_brackets or PUTS_BEFORE.search(sentence[max(0, begin - 20) : begin]):
            return group_of(match)
    return mentioned_letter(rest, pattern) or mentioned_letter(sentence, pattern)


def mentioned_letter(text: str, pattern: Letters) -> str | None:
    """The letter that a text without an announcement puts forward."""
    heads = [group_of(match) for line in text.split("\n") if (match := pattern.head.match(line))]
    agree = len({letter.casefold() for letter in heads}) == 1
    if agree and pattern.head.match(text):
        return heads[0]
    found = [group_of(match) for match in pattern.mention.finditer(text)]
    return found[-1] if found else heads[0] if agree else None


def without_options(text: str, pattern: Letters) -> str:
    """A text without the problem's options where it repeats them: "A) 40 (B) 60 (C) 70"."""
    parts, done = [], 0
    for run in option_runs(text, pattern, LONGEST_OPTION):
        before = text[max(0, run[0].start() - 10) : run[0].start()]
        several = len(run) >= min(3, len(pattern.labels))
        if several and not re.search(r"\b(?:is|are):? ?\W?$", before):
            parts.append(text[done : run[0].start()])
            done = run[-1].end()
    return "".join([*parts, text[done:]])


def option_runs(text: str, pattern: Letters, longest: int) -> list[list[re.Match]]:
    """The markers "A) ... B) ... C)" that follow each other in order, at most `longest` characters
    apart, from the first letter or digit on."""
    order = list(pattern.labels)
    firsts = {order[0], next((x for x in order if x.isdecimal()), order[0])}
    runs: list[list[re.Match]] = [[]]
    for match in pattern.marker.finditer(text):
        letter = match[1].casefold()
        if runs[-1]:
            last = runs[-1][-1]
            follows = order.index(letter) == order.index(last[1].casefold()) + 1
            if follows and match.start() - last.end() <= longest:
                runs[-1].append(match)
                continue
        runs.append([match] if letter in firsts else [])
    return [run for run in runs if run]


def options_in(prompt: str, letters: tuple[str, ...], label: str) -> tuple[str, ...]:
    """The options of one problem: those that its prompt lists, where its label is among them; else
    those of the same sort (letter or digit) as its label; else all."""
    pattern = patterns(letters)
    core = next((x for x, spelling in pattern.labels.items() if spelling == label.strip()), "")
    for run in reversed(option_runs(prompt, pattern, len(prompt))):
        listed = [match[1].casefold() for match in run]
        if len(listed) > 1 and core in listed:
            return tuple(pattern.labels[x] for x in listed)
    same = [x for x in pattern.labels if x.isdecimal() == core.isdecimal()] if core else []
    return tuple(pattern.labels[x] for x in same) or letters

"""Where a text announces its answer, and where the text that belongs to this answer ends."""

import re
from collections.abc import Callable

from data.markup import FINAL, plain

# "answer is", "answer:", "####" and the like. Of a total or a result more may be reckoned, and a
# text may speak of it after its answer: those come second.
STATES = (
    r"(?:\s\([^)\n]{0,60}\))?(?:\sto\s[^.:=\n]{1,60}?)?"
    r"\s?(?:(?:is|are|was|equals|comes to|(?:would|will|should|must) be)\s?[:=]?|[:=])"
)
HEADING = (  # of a section: "#### Step 2: add", but not "#### 18 Question: ..."
    r" ?(?:[^\W\d][^\n]{0,80}(?<!uestion)(?<!roblem)(?<!\bQ):|\d+(?:[.)][^\n]{0,80}:|:\s))"
)
ANSWER = re.compile(
    r"(?m:^(?:#{1,6} )?(?:final )?answer$)"
    rf"|\b(?:answers?|ans|(?:correct|right|best) (?:option|choice|solution|ending))\b{STATES}"
    rf"|#{{4,}}(?!{HEADING})|{FINAL}",
    re.IGNORECASE,
)
TOTAL = re.compile(rf"\b(?:result|total)\b{STATES}", re.IGNORECASE)
BEFORE = re.compile(  # "7 apples is the answer": the answer comes first
    r"(?<!\S)((?:\S{1,20}\s)?"
    r"(?!(?:what|which|who|this|that|these|it|here|one|answer|option|choice)\b)\S{1,40})"
    r" is (?:the (?:\w+ )?(?:answer|option|choice)|correct)\b",
    re.IGNORECASE,
)
DENIED = re.compile(
    r"(?:\bnot|n['’]t)\s(?:(?:the|a|an|option|choice|answer)\s)?\S*\w\)?", re.IGNORECASE
)

# Where the model continues with something else.
TURN_END = re.compile(r"<\|(?:im_end|endoftext|eot_id|im_start|end)\|>|</s>|<end_of_turn>")
NEXT_PROBLEM = re.compile(
    r"(?:^|(?<=[\d.!?)>])|(?<=[\d.!?)] ))#{0,3} ?"
    r"(?:(?:Next|New|Another)? ?(?:[Qq]uestion|QUESTION|[Pp]roblem|Exercise|Task|Instruction)"
    r"|Q|User|USER|Human) ?(?:\d{1,4}|\([^)\n]{1,20}\))? ?:(?!\d)",
    re.MULTILINE,
)
ASKED = re.compile(  # a line after the answer that asks for a quantity, without a second thought
    r"\n(?! ?(?:wait|but|hmm|let|now|hold|actually|however|so|then|check)\b)[^\n?]{0,400}?"
    r"\b(?:how (?:many|much|long|far|old|tall|fast|big|large)|what (?:is|are|was|were|will))\b"
    r"[^\n?]{0,200}\?",
    re.IGNORECASE,
)
IN_A_SENTENCE = re.compile(rf"(?:is|are|was|equals|to|be)\s?[:=]?$|#|{FINAL}", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.?](?:\s|$)|!(?:\s(?=[A-Z])|$)|\n")
SUPPOSES = re.compile(r"(?i)\b(?:if|had|were|suppose|without)\b[^.?!\n]*$")
HASHES = re.compile(r"#{4,} ?([^\n#]{1,200})")


def own_text(text: str, is_answer: Callable[[str], bool]) -> str:
    """A text in plain form, without what a model writes before and after its own answer.

    Dropped are: its thoughts up to </think>, or to the end where they do not end; everything after
    a token that ends a turn and after the first "#### ANSWER" (as GSM8K ends a solution); and, once
    an answer was announced, everything from another problem on. is_answer: whether a line after
    #### is an answer and nothing else.
    """
    after = text.rpartition("</think>")[2]
    text = plain(after.partition("<think>")[0] if after.strip() else text)
    for match in TURN_END.finditer(text):
        if text[: match.start()].strip():
            text = text[: match.start()]
            break
    first = ANSWER.search(text)
    if first:
        line = text[first.end() : first.end() + 200].partition("\n")[0].strip()
        sure = IN_A_SENTENCE.search(first[0]) or is_answer(line)
        for other in (NEXT_PROBLEM, ASKED) if sure else (NEXT_PROBLEM,):
            end = other.search(text, first.end())
            if end and text[first.end() : end.start()].strip(" .:\n"):
                text = text[: end.start()]
    for match in HASHES.finditer(text):
        if is_answer(match[1].strip()):
            return text[: match.end()]
    return text


def without_denials(text: str) -> str:
    """A plain text without what it denies, "not 5", and with "7 is the answer" turned round."""
    return BEFORE.sub(r"the answer is \1.", DENIED.sub("", text))


def statements(text: str, trigger: re.Pattern = ANSWER) -> list[str]:
    """What follows each trigger up to the next one, the last first, without those that nothing
    follows. Conditional answers ("would be") come last."""
    parts, supposed, end = [], [], len(text)
    for match in reversed(list(trigger.finditer(text))):
        start = match.start()
        would = match[0].lower().rstrip(" :=").endswith("would be")
        supposes = would and SUPPOSES.search(text[max(0, start - 100) : start])
        (supposed if supposes else parts).append(text[match.end() : end])
        end = start
    return [part for part in [*parts, *supposed] if part.strip(" .\n")]


def sentence_and_rest(text: str) -> tuple[str, str, bool]:
    """A text divided at the first full stop that ends a sentence, or line end; whether it ends in
    a question mark."""
    text = text.strip()
    end = SENTENCE_END.search(text)
    if not end:
        return text, "", False
    return text[: end.start()], text[end.end() :], end[0].startswith("?")

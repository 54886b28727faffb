"""A text without its markup: LaTeX, Markdown, tags and quotes. Every step is linear in the text."""

import re
import unicodedata

FINAL = "\ue000"  # stands where a box or a tag says that the answer follows; the line ends with it

# LaTeX, Markdown and tags, and what is put for them, in this order.
MARKUP = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"(?i)<(?:final[ _-]?)?answer>", f"{FINAL} "),
        (r"(?i)</(?:final[ _-]?)?answer>", "\n"),
        (r"\\[dt]?frac\s?(?:\{([^{}]*)\}\s?\{([^{}]*)\}|(\d)(\d))", r" \1\3/\2\4"),
        (r"\\(?:text|mathrm|mathbf|textbf|mathit|textit)\s?\{([^{}]*)\}", r"\1"),
        (r"\\(?:text|mathrm|mathbf|textbf|mathit|textit)\s?\{([^{}]*)\}", r"\1"),  # one in another
        (r"\\(?:times|cdot)(?![A-Za-z])", "×"),
        (r"\s?\^\s?(?:\{\s?\\(?:circ|degree)\s?\}|\{o\}|\\(?:circ|degree)(?![A-Za-z]))", "°"),
        (r"° (?=[CF]\b)", "°"),
        (
            r"(?<=\d)\s?\^\s?(?:\{\s?(?:\\rm\s?)?(st|nd|rd|th)\s?\}|(st|nd|rd|th)(?![A-Za-z]))",
            r"\1\2",
        ),
        (r"\\(?:left|right)\b|\\[,;!()\[\]]|(?<=\d)\\ (?=\d)", ""),
        (r"\\([$%])", r"\1"),
        (r"\{,\}", ","),
        (r"(?<=\d)\*\*(?=\d)", "^"),
        (r"\*\*|`|(?<!\w)_+|(?<!_)_+(?!\w)", ""),  # bold, code
        (r"(?<![\w*])\*([^\s*\d][^*\d\n]{0,60})\*(?![\w*])", r"\1"),  # italics
        (r"(?<!\w)['\"‘“]([^\s'\"]{1,40})['\"’”](?!\w)", r"\1"),  # quotes
        (r"\\f?boxed\s?\{((?:[^{}]|\{[^{}]*\})*+)\}", f"{FINAL} \\1\n"),
        (r"(?<=\d)\$(?!\d)|\$(?=[A-Za-z](?!\w))|(?<=\$[A-Za-z])\$", ""),  # $42$, $B$, $B
        (r"\s?\^\s?", "^"),
        (r"\^[{(]\s?([-+\u2212]?\d{1,3})\s?[})]", r"^\1"),
        (r"(?<=\d) to the (?:power (?:of )?)?(\d{1,3})(?:(?:st|nd|rd|th)(?: power)?)?\b", r"^\1"),
        (r"(?<=\d) and (?:a|one)[ -]half\b", " 1/2"),
        (r"\(\s?(\w)\s?\)", r"(\1)"),
    )
]
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
SIGNS = str.maketrans("（）【】，：\u066b\u066c", "()[],:.,")  # full width; the Arabic separators
SIGNS |= {  # ½ as " 1/2"
    ord(sign): " " + unicodedata.normalize("NFKC", sign).replace("\u2044", "/")
    for sign in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
}
POWER = re.compile(r"(?<=\d)[⁰¹²³⁴-⁹⁻]+")
BLANKS = re.compile(r"\s+")


def plain(text: str) -> str:
    """`text` without its markup, in Unicode's composed form (NFC).

    White space becomes single blanks and line ends, powers and fractions become 2^3 and 1/2, a box
    or an <answer> tag becomes a line that begins with FINAL. What follows another
    "### Instruction" is cut off.
    """
    text = re.split(r"###\s*Instruction", text, maxsplit=1)[0].rstrip("#")
    text = unicodedata.normalize("NFC", text.replace(FINAL, "")).translate(SIGNS)
    text = one_blank(POWER.sub(lambda match: "^" + match[0].translate(SUPERSCRIPTS), text))
    for pattern, new in MARKUP:
        text = pattern.sub(new, text)
    return one_blank(text).strip()


def one_blank(text: str) -> str:
    """`text` with each run of white space as one line end where it holds one, else as one blank."""
    return BLANKS.sub(lambda blanks: "\n" if "\n" in blanks[0] else " ", text)

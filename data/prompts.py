"""Prompt templates: a row -> the prompt and the response to learn.

The template is stored with the adapter and used again in evaluation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from data.assistant_turns import Conversation
from data.chat_template import RefusedMessages, render_all
from files.errors import UserError, unknown

WRITE = " Write a response that appropriately completes the request."
TASK = "Below is an instruction that describes a task." + WRITE
PAIRED = TASK.replace(" task.", " task, paired with an input that provides further context.")
PREAMBLE, RESPONSE = TASK + "\n\n### Instruction:\n", "\n\n### Response:\n"
GAP = 16 * " "  # before every line of the paper's v1 prompt but the first, blank lines too
LARGEST = 100_000  # characters of a chat template


@dataclass(frozen=True)
class Template:
    """A named prompt: `text` with {instruction}, `with_input` with {input} too; or Jinja (chat)."""

    name: str
    text: str
    with_input: str = ""  # for rows with an input
    strip: bool = True  # whether white space around instruction and response is dropped
    chat: bool = False
    special: tuple[tuple[str, str], ...] = ()  # of a chat template: ("bos_token", "<s>") ...

    def prompt(self, row: dict) -> str:
        """The text before the response to a row {instruction, input, history}."""
        if self.chat:
            (text,) = self.prompts([row])
            return text
        turns = self.turns(row)
        earlier = [f"{asked}{response}\n\n" for asked, response, _ in turns[:-1]]
        return "".join([*earlier, turns[-1][0]])

    def prompts(self, rows: Sequence[dict]) -> Iterator[str]:
        """`prompt` of many rows, those of a chat template in one go. Raises RefusedMessages."""
        if not self.chat:
            yield from map(self.prompt, rows)
            return
        chats = [(self.question(row), True) for row in rows]
        for text in render_all(self.text, "plain", chats, self.special):
            if isinstance(text, RefusedMessages):
                raise text
            yield text

    def whole(self, row: dict) -> str:
        """Prompt and response {output} as one text, to train on.

        Raises UserError for a chat template that does not begin with its own prompt.
        """
        if not self.chat:
            return self.prompt(row) + self.response(row)
        return self.conversation(row).text.rstrip()

    def conversation(self, row: dict) -> Conversation:
        """A row as a chat with the spans that the assistant says. Raises UserError."""
        (chat,) = self.conversations([row])
        if isinstance(chat, RefusedMessages):
            raise chat
        return chat

    def conversations(self, rows: Sequence[dict]) -> Iterator[Conversation | RefusedMessages]:
        """`conversation` of many rows in one go, with an error in place of a refused one."""
        chats = []
        for row in rows:
            reply = {"role": "assistant", "content": self.response(row)}
            chats.append(([*self.question(row), reply], False))
        for chat in render_all(self.text, "as_conversation", chats, self.special):
            if isinstance(chat, RefusedMessages):
                yield chat
            else:
                text, spans, opens, marked = chat
                yield Conversation(text, [tuple(span) for span in spans], opens, marked)

    def question(self, row: dict) -> list[dict]:
        """A row as the messages of a chat, up to the response.

        The input is a paragraph after the instruction. Messages of a published conversation stay
        as they are; the texts of other rows lose the white space around them.
        """
        if not row["instruction"] and "history" in row:
            return row["history"]
        parts = [self.text_of(row, "instruction"), self.text_of(row, "input")]
        asked = {"role": "user", "content": "\n\n".join(filter(None, parts))}
        return [*row.get("history", []), asked]

    def turns(self, row: dict) -> list[tuple[str, str, float]]:
        """(prompt, response, loss weight) of every turn of a row, for a template that is no chat.

        A system message is a paragraph before the first prompt. Later prompts are without
        the template's preamble. The last response is the row's output. Raises UserError for a
        conversation that begins with the assistant.
        """
        turns: list[tuple[str, str, float]] = []
        waiting: list[str] = []  # messages without a response yet
        system = ""
        for message in row.get("history", []):
            content = self.trim(message["content"])
            if message["role"] == "system":
                system = "\n\n".join(filter(None, (system, content)))
            elif message["role"] == "user":
                waiting.append(content)
            elif waiting:
                asked = self.fill("\n\n".join(waiting), "", later=bool(turns))
                turns.append((asked, content, message.get("weight", 1.0)))
                waiting = []
            else:
                raise self.unasked()
        instruction, given = (self.trim(row.get(key) or "") for key in ("instruction", "input"))
        if "history" in row and not (waiting or instruction):
            raise self.unasked()
        instruction = "\n\n".join(filter(None, [*waiting, instruction]))
        last = self.fill(instruction, given, later=bool(turns))
        turns.append((last, self.response(row), 1.0))
        if system:
            turns[0] = (f"{system}\n\n{turns[0][0]}", *turns[0][1:])
        return turns

    def unasked(self) -> RefusedMessages:
        return RefusedMessages(
            f"the template {self.name} has no place for an assistant turn without a user turn "
            "before it"
        )

    def fill(self, instruction: str, given: str, later: bool = False) -> str:
        """The template with these texts in its slots; a later turn is without the preamble."""
        if given and not self.with_input:
            instruction, given = f"{instruction}\n\n{given}", ""
        text = self.with_input if given else self.text
        if later:  # from the paragraph on that holds the instruction
            text = text[text.rfind("\n\n", 0, text.index("{instruction}")) + 1 :].lstrip("\n")
        parts = text.split("{instruction}")  # an instruction may hold "{input}" itself
        return instruction.join(part.replace("{input}", given) for part in parts)

    def response(self, row: dict) -> str:
        return self.text_of(row, "output") if self.chat else self.trim(row.get("output") or "")

    def text_of(self, row: dict, field: str) -> str:
        """A text of a row for a chat."""
        text = row.get(field) or ""
        return text if "history" in row else self.trim(text)

    def trim(self, text: str) -> str:
        return text.strip() if self.strip else text

    def table(self) -> dict:
        """What is stored with an adapter; `template_from` gives the Template back."""
        return asdict(self) | {"special": dict(self.special)}


def paper(task: str, end: str, *sections: str) -> str:
    """The training prompt of the paper's repository to the byte, with its source's indentation."""
    pairs = zip(sections[::2], sections[1::2], strict=True)
    blocks = [f"{GAP}### {name}:\n{GAP}{slot}" for name, slot in pairs]
    return f"{task}{end}\n\n" + f"\n{GAP}\n".join(blocks)


NOQA = "  # noqa: E501"  # a comment that became part of the v1 prompt
SHORT = ("Instruction", "{instruction}", "Response", "")
LONG = ("Instruction", "{instruction}", "Input", "{input}", "Response", "")
TEMPLATES = {
    one.name: one
    for one in (
        Template(
            "alpaca",
            PREAMBLE + "{instruction}" + RESPONSE,  # Taori et al. 2023
            PAIRED + "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}" + RESPONSE,
        ),
        Template("paper-v1", paper(TASK, NOQA, *SHORT), paper(PAIRED, NOQA, *LONG), strip=False),
        Template("paper-final", paper(TASK, "  ", *SHORT), paper(PAIRED, " ", *LONG), strip=False),
        Template("plain", "{instruction}\n", "{instruction}\n{input}\n"),
    )
}
CHAT = "chat"  # the name of the template that a tokenizer folder holds
AUTO = "auto"  # chat for a user's own data where the tokenizer has a template, else alpaca
NAMES = (*TEMPLATES, CHAT)


def template(name: str, tokenizer=None, is_own: bool = False) -> Template:
    """The template of this name; "chat" is the one stored with the tokenizer.

    "auto" is "chat" for a user's own data or instruction (is_own) where the tokenizer has a
    template, else "alpaca", the paper's. Raises UserError for an unknown name or a tokenizer
    without a template.
    """
    if name == AUTO:
        name = CHAT if is_own and tokenizer is not None and tokenizer.chat_template else "alpaca"
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name != CHAT:
        raise unknown("prompt template", name, (*NAMES, AUTO))
    if tokenizer is None or not tokenizer.chat_template:
        missing = "no tokenizer is given"
        if tokenizer is not None:
            missing = f"the tokenizer in {tokenizer.folder} has no chat template"
        raise UserError(f"template chat: {missing}; use --template {', '.join(TEMPLATES)}")
    if len(tokenizer.chat_template) > LARGEST:
        raise UserError(
            f"the chat template of {tokenizer.folder} has {len(tokenizer.chat_template):,} "
            "characters, too many"
        )
    special = tuple(sorted(tokenizer.special_tokens.items()))
    return Template(CHAT, tokenizer.chat_template, chat=True, special=special)


def prompt(name: str, instruction: str, given: str = "") -> str:
    """The prompt of a named template. Raises UserError for an unknown name."""
    return template(name).prompt({"instruction": instruction, "input": given})

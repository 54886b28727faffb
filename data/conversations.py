"""Conversations in the forms that people publish -> one row: earlier messages, question, answer."""

import json

ROLES = {  # as files write them -> as chat templates know them
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatgpt": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip
UNLEARNED = ("weight", "loss_mask", "train", "trainable")  # 0 or false keeps a turn out of the loss


class Unusable(ValueError):
    """Why a row cannot be used, in words."""


def conversation_row(value, system: str = "") -> dict:
    """A conversation -> {history, instruction, input, output, answer}.

    value: a list of {role, content} (OpenAI) or {from, value} (ShareGPT), or that list as JSON
    text. The last assistant turn is the output, the user turn before it the instruction; what
    comes before them is the history, a list of {role, content} and for a turn without loss
    `weight` 0. What follows the last assistant turn is left out. Raises Unusable.
    """
    messages = [message_of(entry) for entry in list_of(value)]
    if system.strip():
        messages.insert(0, {"role": "system", "content": system})
    return row_of(messages)


def row_of(messages: list[dict]) -> dict:
    """Messages {role, content} -> a row, as `conversation_row` says."""
    messages = list(messages)
    while messages and not (messages[-1]["role"] == "assistant" and "weight" not in messages[-1]):
        messages.pop()
    if not messages:
        raise Unusable("has no assistant turn to learn")
    output = messages.pop()["content"]
    instruction = ""
    if messages and messages[-1]["role"] == "user" and messages[-1]["content"].strip():
        instruction = messages.pop()["content"]
    return {
        "instruction": instruction, "input": "", "output": output, "answer": "",
        "history": messages,
    }  # fmt: skip


def history_of(value) -> list[dict]:
    """Earlier turns -> messages: pairs [user, assistant] (LLaMA-Factory), or a conversation.

    Raises Unusable.
    """
    if value is None or value == "":
        return []
    messages = []
    for entry in list_of(value, empty=True):
        if isinstance(entry, dict):
            messages.append(message_of(entry))
        elif isinstance(entry, list) and len(entry) == 2:
            for role, text in zip(("user", "assistant"), entry, strict=True):
                if not isinstance(text, str):
                    raise Unusable(f"history holds a {type(text).__name__}, not a text")
                messages.append({"role": role, "content": text})
        else:
            raise Unusable("history is no list of [user, assistant] pairs or of messages")
    return messages


def list_of(value, empty: bool = False) -> list:
    """A list, as such or as JSON text. Raises Unusable."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Unusable("is a text, not a list of messages") from None
    if not isinstance(value, list):
        raise Unusable(f"is a {type(value).__name__}, not a list of messages")
    if not value and not empty:
        raise Unusable("is an empty list of messages")
    return value


def message_of(entry) -> dict:
    """{role, content} from one message of a file. Raises Unusable."""
    if not isinstance(entry, dict):
        raise Unusable(f"holds a {type(entry).__name__} where a message should be")
    if entry.get("tool_calls") or entry.get("function_call"):
        raise Unusable("has a tool call, which is not read")
    role = entry.get("role", entry.get("from"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise Unusable(f"has a message of role {role!r:.50}; known are {', '.join(ROLES)}")
    content = entry.get("content", entry.get("value"))
    message = {"role": ROLES[role.lower()], "content": text_of_parts(content)}
    reasoning = entry.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning.strip() and message["role"] == "assistant":
        answer = message["content"].lstrip("\n")
        message["content"] = f"<think>\n{reasoning.strip()}\n</think>\n\n{answer}"
    if message["role"] == "assistant" and any(entry.get(key) in (0, False) for key in UNLEARNED):
        message["weight"] = 0
    return message


def text_of_parts(content) -> str:
    """The text of a message: a string, or a list of parts of type text. Raises Unusable."""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        kinds = {part.get("type") for part in content} - {"text"}
        if kinds:
            raise Unusable(f"has a message with a part of type {sorted(map(str, kinds))[0]:.50}")
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise Unusable("has a message without a text")
    if any("\ud800" <= letter <= "\udfff" for letter in content):
        raise Unusable("has a message with half a surrogate pair")
    return content

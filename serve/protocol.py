"""OpenAI's JSON: bodies of requests as typed values.

What has no effect here is refused unless it has its neutral value; nothing is passed over but names
of the caller.
"""

import random
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from eval.sampling import Sampling
from files.errors import UserError
from files.typed import Range, from_table
from model.tokenizer import Tokenizer

ADAPTER_NAME = re.compile(r"[\w.:/-]{1,64}", re.ASCII)
MOST_CHOICES = 128  # of a request
NAMES_OF_CALLER = {"user", "metadata", "safety_identifier", "prompt_cache_key"}
NEUTRAL: dict[str, tuple] = {  # fields that can be given in these values only
    "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "tools": ([],),
    "functions": ([],), "response_format": ({"type": "text"},), "store": (False,), "echo": (False,),
    "suffix": ("",), "best_of": (1,), "tool_choice": ("none", "auto"), "modalities": (["text"],),
    "service_tier": ("auto", "default"), "parallel_tool_calls": (True, False),
}  # fmt: skip
ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True)
class StreamOptions:
    include_usage: bool = False
    include_obfuscation: bool = False  # padding against eavesdroppers: there is none either way


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What both kinds of request have in common.

    Each has a `limit`, new tokens of a choice (None: what there is room for), and `likely`, the
    likely tokens beside each new one (None: no figures).
    """

    model: str
    max_tokens: Annotated[int, Range(1)] | None = None
    temperature: Annotated[float, Range(0, 2)] = 1.0  # 0: greedy
    top_p: Annotated[float, Range(0, 1, open=True)] = 1.0
    top_k: Annotated[int, Range(0)] = 0  # not OpenAI's; as in vLLM
    n: Annotated[int, Range(1, MOST_CHOICES)] = 1
    stop: str | list[str] = ()
    seed: Annotated[int, Range(0, 2**62)] | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def check(self) -> None:
        if len(self.stops) > 16 or not all(0 < len(stop) <= 1000 for stop in self.stops):
            raise UserError("stop should be up to 16 texts of 1 to 1,000 characters")
        if self.stream_options.include_usage and not self.stream:
            raise UserError("stream_options is for requests with stream = true")
        if sampling := self.sampling():
            sampling.check()

    def sampling(self) -> Sampling | None:
        if self.temperature == 0:
            return None
        return Sampling(self.temperature, self.top_k, self.top_p)

    def first_seed(self) -> int:
        """The seed of the first choice; the others' are those after it."""
        return random.getrandbits(48) if self.seed is None else self.seed


@dataclass(frozen=True, kw_only=True)
class Completion(Asked):
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Range(0, 20)] | None = None

    @property
    def limit(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens  # OpenAI's default

    @property
    def likely(self) -> int | None:
        return self.logprobs

    def prompts(self, tokenizer: Tokenizer) -> list[list[int]]:
        """The token ids of each prompt. Raises UserError."""
        given = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            given = [given]
        prompts = [tokenizer.encode(one) if isinstance(one, str) else one for one in given]
        if not prompts or not all(prompts):
            raise UserError("prompt is empty: give at least one token")
        if len(prompts) * self.n > MOST_CHOICES:
            raise UserError(
                f"{len(prompts)} prompts with n = {self.n}: {MOST_CHOICES} choices at most"
            )
        return prompts


@dataclass(frozen=True, kw_only=True)
class Chat(Asked):
    messages: list[dict]
    max_completion_tokens: Annotated[int, Range(1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Range(0, 20)] = 0

    @property
    def limit(self) -> int | None:
        both = (self.max_completion_tokens, self.max_tokens)
        return min((limit for limit in both if limit is not None), default=None)

    @property
    def likely(self) -> int | None:
        return self.top_logprobs if self.logprobs else None

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise UserError("top_logprobs needs logprobs = true")

    def texts(self) -> list[dict]:
        """The messages as {role, content}. Raises UserError for what is no text."""
        messages = []
        for number, message in enumerate(self.messages):
            where, role = f"messages[{number}]", message.get("role")
            if role not in ROLES:
                raise UserError(f"{where}: role = {role!r:.100} should be {', '.join(ROLES)}")
            content = text_of(message.get("content"), where)
            role = "system" if role == "developer" else role
            messages.append({"role": role, "content": content})
        if not messages or messages[-1]["role"] == "assistant":
            raise UserError("messages should end with one that can be answered")
        return messages


def text_of(content: Any, where: str) -> str:
    """A message's text, which may come in parts. Raises UserError."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) and content else [None]
    for part in parts:
        is_text = isinstance(part, dict) and part.get("type") == "text"
        if not is_text or not isinstance(part.get("text"), str):
            raise UserError(f"{where}: content = {content!r:.100} should be a text")
    return "".join(part["text"] for part in parts)


def given_in(body: Any, passed_over: Collection[str]) -> dict:
    """What a body says, without null and these names. Raises UserError."""
    if not isinstance(body, dict):
        raise UserError(f"the body should be a JSON object, not {body!r:.100}")
    return {k: value for k, value in body.items() if value is not None and k not in passed_over}


def asked(kind: type[Asked], body: Any) -> Asked:
    """The request of a body. Raises UserError."""
    table = given_in(body, NAMES_OF_CALLER)
    for key in [key for key in table if key in NEUTRAL]:
        value = table.pop(key)
        if not any(type(value) is type(only) and value == only for only in NEUTRAL[key]):
            raise UserError(f"{key} = {value!r:.100} is not supported: leave it out")
    return from_table(kind, table, "body", "parameter")


def error(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict:
    """OpenAI's form of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class LoadAdapter:
    lora_name: str
    lora_path: str = ""
    load_inplace: Literal[False] = False


def adapter_request(body: Any, with_path: bool) -> dict[str, str]:
    """vLLM's request to load or unload an adapter, checked. Raises UserError."""
    table = given_in(body, ("lora_int_id",))  # vLLM's number of it
    wanted = from_table(LoadAdapter, table, "body", "parameter")
    if not ADAPTER_NAME.fullmatch(wanted.lora_name):
        raise UserError(
            f"lora_name = {wanted.lora_name!r:.100} should be 1 to 64 letters, digits, - _ . : /"
        )
    if bool(wanted.lora_path) != with_path:
        raise UserError(f"lora_path should {'be given' if with_path else 'not be given'}")
    return {"lora_name": wanted.lora_name, "lora_path": wanted.lora_path}

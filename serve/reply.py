"""The JSON objects of an answer: whole, or in the chunks of a stream."""

import random
import time
from collections.abc import Sequence

from model.tokenizer import Tokenizer
from serve.protocol import Asked, Chat
from serve.questions import Piece, Scored


class Reply:
    """The JSON objects of one answer to a request."""

    def __init__(self, request: Asked, tokenizer: Tokenizer, prompt_tokens: int):
        self.request, self.tokenizer = request, tokenizer
        self.is_chat = isinstance(request, Chat)
        self.prompt_tokens, self.tokens = prompt_tokens, 0
        kind = "chatcmpl" if self.is_chat else "cmpl"
        self.head = {
            "id": f"{kind}-{random.getrandbits(96):024x}",
            "object": "chat.completion" if self.is_chat else "text_completion",
            "created": int(time.time()),
            "model": request.model,
        }

    def usage(self) -> dict:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
        }

    def whole(self, choices: Sequence[Sequence[Piece]]) -> dict:
        """The answer in one object; choices: the pieces of each."""
        listed = []
        for index, pieces in enumerate(choices):
            text = "".join(piece.text for piece in pieces)
            scored = [one for piece in pieces for one in piece.scored]
            said = {"message": {"role": "assistant", "content": text}}
            listed.append(
                {"index": index}
                | (said if self.is_chat else {"text": text})
                | {"logprobs": self.logprobs(scored), "finish_reason": pieces[-1].ended}
            )
            self.tokens += sum(piece.tokens for piece in pieces)
        return self.head | {"choices": listed, "usage": self.usage()}

    def chunk(self, index: int, piece: Piece, is_first: bool) -> dict:
        """The next part of a choice."""
        self.tokens += piece.tokens
        delta = ({"role": "assistant"} if is_first else {}) | {"content": piece.text}
        choice = {"index": index} | ({"delta": delta} if self.is_chat else {"text": piece.text})
        choice |= {"logprobs": self.logprobs(piece.scored), "finish_reason": piece.ended or None}
        return self.head_of_chunk() | {"choices": [choice]}

    def last_chunk(self) -> dict:
        return self.head_of_chunk() | {"choices": [], "usage": self.usage()}

    def head_of_chunk(self) -> dict:
        return self.head | ({"object": "chat.completion.chunk"} if self.is_chat else {})

    def logprobs(self, scored: Sequence[Scored]) -> dict | None:
        if self.request.likely is None:
            return None
        if self.is_chat:
            return {
                "content": [
                    self.entry(token, logprob) | {"top_logprobs": [self.entry(*one) for one in top]}
                    for token, logprob, top in scored
                ]
            }
        names = [self.name(token) for token, _, _ in scored]
        return {
            "tokens": names,
            "token_logprobs": [logprob for _, logprob, _ in scored],
            "top_logprobs": [{self.name(t): p for t, p in top} for _, _, top in scored],
            "text_offset": [sum(map(len, names[:i])) for i in range(len(names))],
        }

    def entry(self, token: int, logprob: float) -> dict:
        name = self.name(token)
        return {"token": name, "logprob": logprob, "bytes": list(name.encode())}

    def name(self, token: int) -> str:
        """A token's text."""
        return self.tokenizer.decode([token], special=True)

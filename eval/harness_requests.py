"""What lm-evaluation-harness asks of a model: likelihoods and texts, by our own decoding."""

import importlib
import warnings
from collections.abc import Callable

from data.batches import encode_prompt
from data.prompts import Template
from data.stops import stop_ids
from eval.engine import Engine, Request
from eval.likelihood import log_likelihoods
from eval.sampling import Sampling
from files.errors import UserError, short_of_memory, unknown
from model.language import LanguageModel
from model.tokenizer import Tokenizer

LENGTH = 2048  # tokens of a text, where the model has no limit (BLOOM was trained on so many)
SETTINGS = "until max_gen_toks max_new_tokens do_sample temperature top_k top_p num_beams".split()


def harness(module: str):
    """A module of lm_eval. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(f"lm_eval.{module}")
    except ImportError as error:
        raise UserError(
            f"the tasks of lm-evaluation-harness need it installed: pip install lm-eval ({error})"
        ) from None


class Requests:
    """The first base of a class whose second is lm_eval's TemplateLM.

    TemplateLM tokenizes contexts and continuations as for every model of the harness: spaces at the
    end of a context belong to the continuation, the two are encoded as one text, and an empty
    context is the BOS token, or the EOS where there is none.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        batch_size: int,
        max_new_tokens: int,
        template: Template | None,
    ):
        super().__init__()
        self.net, self.tokens, self.template = model, tokenizer, template
        self.batch_size, self.max_gen_toks = batch_size, max_new_tokens
        length = model.shape.positions or LENGTH
        self.max_length = length - model.prompt_length - model.prefix_length  # they have positions

    @property
    def eot_token_id(self) -> int | None:
        return self.tokens.eos_id

    @property
    def prefix_token_id(self) -> int:
        first = self.tokens.eos_id if self.tokens.bos_id is None else self.tokens.bos_id
        if first is None:
            raise UserError(
                "an empty context needs a token before the text, but the tokenizer has neither a "
                "BOS nor an EOS token"
            )
        return first

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        ids = self.tokens.encode(string, bos=add_special_tokens is not False)
        twice = len(ids) > 1 and ids[0] == ids[1] == self.tokens.bos_id  # the text had its own BOS
        return ids[1:] if twice else ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """With a template, the ids of training: the context is the instruction, the continuation,
        without spaces around it, the response."""
        if self.template is None:
            return super()._encode_pair(context, continuation)
        before = self.prompt_ids(context)
        whole = self.template.whole({"instruction": context, "output": continuation})
        return before, self.tokens.encode(whole, bos=not self.template.chat)[len(before) :]

    def prompt_ids(self, context: str) -> list[int]:
        """The ids of the context, within the template's prompt unless it is empty."""
        if self.template is None or not context:
            return self.tok_encode(context) or [self.prefix_token_id]
        return encode_prompt(self.tokens, {"instruction": context}, self.template)[1]

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        if any(request.args[1] == "" for request in requests):
            raise UserError("a task asks for the likelihood of an empty continuation")
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: list, **_) -> list[tuple[float, bool]]:
        """For (texts, context ids, continuation ids); too long a context loses its beginning."""
        pairs, cut = [], 0
        for _texts, context, continuation in requests:
            room = self.max_length + 1 - len(continuation)  # the last token is not read
            if room < 1:
                raise UserError(
                    f"a continuation has {len(continuation)} tokens, the model has room for "
                    f"{self.max_length}"
                )
            pairs.append((context[-room:], continuation))
            cut += len(context) > room
        self.warn_of(cut)
        sizes = {"batch_size": self.batch_size, "vocab_size": self.tokens.size}
        return log_likelihoods(self.net, pairs, **sizes)

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """For whole texts, in windows as long as the model's positions; each token is predicted
        once, the first one after the BOS (or EOS) token."""
        utils, windows, owners = harness("utils"), [], []
        for number, request in enumerate(requests):
            of = self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length
            for window in utils.get_rolling_token_windows(*of, context_len=1):
                windows.append(utils.make_disjoint_window(window))
                owners.append(number)
        totals = [0.0] * len(requests)
        found = log_likelihoods(self.net, windows, batch_size=self.batch_size)
        for number, (log_prob, _) in zip(owners, found, strict=True):
            totals[number] += log_prob
        return totals

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """Texts up to the first of a request's `until` strings or a stop id (data/stops.py).

        Sampled, each request has its number as the seed.
        """
        eos_ids = [] if self.eot_token_id is None else [self.eot_token_id]
        eos = [text for text in [self.tokens.decode(eos_ids, special=True)] if text]
        asked, ends, cut = [], [], 0
        stops = stop_ids(self.tokens)
        for number, request in enumerate(requests):
            until, length, sampling = decoding(request.args[1], self.max_gen_toks)
            until = tuple(dict.fromkeys((*until, *eos)))  # a model may spell EOS out
            if length >= self.max_length:
                raise UserError(
                    f"max_gen_toks {length} leaves no room for a prompt: the model has room for "
                    f"{self.max_length} tokens"
                )
            whole = self.prompt_ids(request.args[0])
            ids = whole[length - self.max_length :]
            cut += len(ids) < len(whole)
            over = self.stops_at(until)
            asked.append(Request(ids, length, stops, 1, sampling, number, over))
            ends.append(until)
        self.warn_of(cut)
        texts = []
        for new, until in zip(self.continued(asked), ends, strict=True):
            text = self.tokens.decode(new)
            for end in until:
                text = text.partition(end)[0]
            texts.append(text)
        return texts

    def continued(self, requests: list[Request]) -> list[list[int]]:
        """The new ids of each request."""
        outputs: list[list[int]] = [[] for _ in requests]
        length = max((len(one.ids) + one.max_new_tokens for one in requests), default=1)
        device, slots = self.net.device, min(self.batch_size, max(1, len(requests)))
        with short_of_memory(f"on {device} with {self.batch_size} texts at once: lower batch_size"):
            for event in Engine(self.net, slots, length, self.tokens.size).run(requests):
                outputs[event.number] += event.tokens
        return outputs

    def stops_at(self, until: tuple[str, ...]) -> Callable[[list[int]], bool]:
        """A function: whether the new tokens of a row hold one of the strings.

        As in lm_eval's HFLM, special tokens are part of the text that is searched, though not of
        the answer. White space inside of one does not count (pocket models have such tokens).
        """
        added = self.tokens.inner.added
        blank = {end for end in until if not end.strip() and any(end in text for text in added)}
        window = 16 + 4 * max(map(len, until), default=0)  # a character takes four tokens at most

        def is_over(new: list[int]) -> bool:
            tail = new[-window:]
            shown, whole = (self.tokens.decode(tail, special=special) for special in (False, True))
            return any(end in (shown if end in blank else whole) for end in until)

        return is_over

    def warn_of(self, cut: int) -> None:
        if cut:
            warnings.warn(
                f"contexts longer than the model's {self.max_length} tokens lost their beginning",
                stacklevel=3,
            )


def decoding(settings: dict, max_new_tokens: int) -> tuple[tuple[str, ...], int, Sampling | None]:
    """A task's generation_kwargs -> (strings that end a text, most tokens, sampling or None).

    Raises UserError for settings that are not supported.
    """
    for name in settings:
        if name not in SETTINGS:
            raise unknown("setting of generation_kwargs", name, SETTINGS)
    until = settings.get("until") or []
    until = tuple(end for end in ([until] if isinstance(until, str) else until) if end)
    lengths = {settings[name] for name in ("max_gen_toks", "max_new_tokens") if name in settings}
    length = (lengths or {max_new_tokens}).pop()
    if lengths or type(length) is not int or length < 1:
        raise UserError(
            f"generation_kwargs: one max_gen_toks of 1 or more is needed, not {settings}"
        )
    if settings.get("num_beams", 1) != 1:
        raise UserError(
            f"generation_kwargs: num_beams = {settings['num_beams']} is not supported, as `until` "
            "needs a single beam"
        )
    given = {name: settings[name] for name in ("temperature", "top_k", "top_p") if name in settings}
    # As for every model of the harness, a temperature without do_sample asks for sampling.
    if settings.get("do_sample", bool(given.get("temperature"))):
        sampling = Sampling(**given)
        sampling.check()
        return until, length, sampling
    greedy = Sampling(**given | {"temperature": 1.0}) == Sampling()
    if given.get("temperature", 0) not in (0, 1) or not greedy:
        raise UserError(f"generation_kwargs: {given} have no meaning without do_sample = true")
    return until, length, None

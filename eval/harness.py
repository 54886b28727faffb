"""EleutherAI's lm-evaluation-harness on our models: its tasks, prompts and metrics, our likelihoods and decoding.

Nothing here needs lm_eval before a model or a task is asked for.
"""

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path

from torch import nn

from data import prompts
from data.batches import encode_prompt
from data.stops import stop_ids
from eval.generate import Sampling, generate, left_pad
from eval.likelihood import log_likelihoods
from files.errors import UserError, short_of_memory, unknown

LENGTH = 2048  # of a text, for a model that has no limit of its own (BLOOM was trained on so many tokens)


def harness(module: str):
    """A module of lm_eval. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(f"lm_eval.{module}")
    except ImportError as error:
        raise UserError(
            f"the tasks of lm-evaluation-harness need it installed: pip install lm-eval ({error})"
        ) from None


def harness_model(
    model: nn.Module,
    tokenizer,
    *,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    template: str | prompts.Template | None = None,
):
    """The model, with the adapters that are on, as an lm_eval.api.model.LM.

    max_new_tokens holds where a task says nothing. A template (or its name) makes every context an instruction, every continuation a response.
    Raises UserError without lm_eval, for an unknown template, and for sizes below 1.
    """
    for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if type(value) is not int or value < 1:
            raise UserError(f"{name} should be 1 or more, not {value!r:.50}")
    if isinstance(template, str):
        template = prompts.template(template, tokenizer)
    kind = type("HarnessModel", (Requests, harness("api.model").TemplateLM), {})
    return kind(model, tokenizer, batch_size, max_new_tokens, template)


def run_tasks(
    model: nn.Module,
    tokenizer,
    tasks: list[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    template: str | prompts.Template | None = None,
) -> dict:
    """Evaluate on tasks of the harness, or of YAML files in include_path -> what its simple_evaluate returns; ["results"][task] has the figures.

    limit: problems of each task, the first ones (None: all). The harness seeds Python's, numpy's and torch's own generators.
    Raises UserError without lm_eval, for an unknown task, a limit below 1, and data that cannot be read.
    """
    lm = harness_model(
        model, tokenizer, batch_size=batch_size, max_new_tokens=max_new_tokens, template=template
    )
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(
            f"{include_path} is no folder; the YAML files of tasks are looked for in it"
        )
    manager = harness("tasks").TaskManager(include_path=include_path)
    for task in tasks:
        if task not in manager.all_tasks:
            raise unknown("task", task, manager.all_tasks, listed="`lm-eval ls tasks` lists them")
    if not tasks:
        raise UserError("no task is given; `lm-eval ls tasks` lists them")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise UserError(f"limit should be 1 or more, not {limit!r:.50}")
    evaluate = harness("evaluator").simple_evaluate
    from datasets.exceptions import DatasetsError  # lm_eval brings it

    try:
        return evaluate(
            lm,
            tasks=tasks,
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            batch_size=batch_size,
            log_samples=False,
        )
    except (
        OSError,
        DatasetsError,
    ) as error:  # no network, no such data set, no such file; a file that is not what its name says
        raise UserError(
            f"the data of {', '.join(tasks)} cannot be read: {str(error).strip().partition(chr(10))[0]:.300}"
        ) from None


class Requests:
    """What the harness asks of a model, answered; the first base of a class whose second is lm_eval's TemplateLM.

    TemplateLM makes tokens of contexts and continuations as for every model of the harness: spaces at the end of a context belong to the
    continuation, the two are encoded as one text, and an empty context is the BOS token, or the EOS where there is none.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        batch_size: int,
        max_new_tokens: int,
        template: prompts.Template | None,
    ):
        super().__init__()
        self.net, self.words, self.batch_size, self.max_gen_toks, self.template = (
            model,
            tokenizer,
            batch_size,
            max_new_tokens,
            template,
        )
        tokens = model.shape.positions or LENGTH
        self.max_length = tokens - model.prompt_length - model.prefix_length  # they have positions

    @property
    def eot_token_id(self) -> int | None:
        return self.words.eos_id

    @property
    def prefix_token_id(self) -> int:
        found = self.words.eos_id if self.words.bos_id is None else self.words.bos_id
        if found is None:
            raise UserError(
                "an empty context needs a token in front of the text, but the tokenizer has neither a BOS nor an EOS token"
            )
        return found

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        ids = self.words.encode(string, bos=add_special_tokens is not False)
        return (
            ids[1:] if len(ids) > 1 and ids[0] == ids[1] == self.words.bos_id else ids
        )  # the text brought its own BOS

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """With a template, the ids of training: the context is the instruction, the continuation the response, without spaces around it."""
        if self.template is None:
            return super()._encode_pair(context, continuation)
        before = self.prompt_ids(context)
        whole = self.template.whole({"instruction": context, "output": continuation})
        return before, self.words.encode(whole, bos=not self.template.chat)[len(before) :]

    def prompt_ids(self, context: str) -> list[int]:
        """Of the context, or of the template's prompt with it; an empty one stays alone."""
        if self.template is None or not context:
            return self.tok_encode(context) or [self.prefix_token_id]
        return encode_prompt(self.words, {"instruction": context}, self.template)[1]

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        if any(request.args[1] == "" for request in requests):
            raise UserError("a task asks for the likelihood of an empty continuation")
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: list, **_) -> list[tuple[float, bool]]:
        """Of (texts, context ids, continuation ids); a context that does not fit loses its beginning."""
        pairs = []
        for _texts, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise UserError(
                    f"a continuation has {len(continuation)} tokens, the model has room for {self.max_length}"
                )
            pairs.append(
                (context[-(self.max_length + 1 - len(continuation)) :], continuation)
            )  # the last token is not read
        self.warn_of(
            sum(
                len(pair[0]) < len(request[1])
                for pair, request in zip(pairs, requests, strict=True)
            )
        )
        return log_likelihoods(
            self.net, pairs, batch_size=self.batch_size, vocab_size=self.words.size
        )

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows as long as the model; each token is predicted once, the first one behind the BOS (or EOS) token."""
        utils, windows, owners = harness("utils"), [], []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in utils.get_rolling_token_windows(
                ids, self.prefix_token_id, self.max_length, context_len=1
            ):
                windows.append(utils.make_disjoint_window(window))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (log_prob, _) in zip(
            owners, log_likelihoods(self.net, windows, batch_size=self.batch_size), strict=True
        ):
            totals[number] += log_prob
        return totals

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """Texts up to the first of a request's `until` strings or a stop id (data/stops.py).

        Sampled, each request has its number as the seed.
        """
        device = next(self.net.parameters()).device
        ends = stop_ids(self.words)
        eos_ids = [] if self.eot_token_id is None else [self.eot_token_id]
        eos = [text for text in [self.words.decode(eos_ids, special=True)] if text]
        groups: dict[tuple, list[int]] = {}  # how to decode -> the requests
        ids = []
        for number, request in enumerate(requests):
            until, length, sampling = decoding(request.args[1], self.max_gen_toks)
            until = tuple(dict.fromkeys((*until, *eos)))  # a model may spell EOS
            if length >= self.max_length:
                raise UserError(
                    f"max_gen_toks {length} leaves no room for a prompt: the model has room for {self.max_length} tokens"
                )
            whole = self.prompt_ids(request.args[0])
            ids.append(whole[length - self.max_length :])
            self.warn_of(len(ids[-1]) < len(whole))
            groups.setdefault((until, length, sampling), []).append(number)
        texts = [""] * len(requests)
        for (until, length, sampling), numbers in groups.items():
            numbers.sort(key=lambda number: -len(ids[number]))
            for start in range(0, len(numbers), self.batch_size):
                batch = numbers[start : start + self.batch_size]
                rows = left_pad([ids[number] for number in batch], 0, device)
                with short_of_memory(
                    f"on {device} with {self.batch_size} texts at once: lower batch_size"
                ):
                    outputs = generate(
                        self.net,
                        *rows,
                        max_new_tokens=length,
                        stop_ids=ends,
                        vocab_size=self.words.size,
                        sampling=sampling,
                        seeds=batch if sampling else None,
                        stop=self.stops_at(until),
                    )
                for number, new in zip(batch, outputs, strict=True):
                    texts[number] = self.words.decode(new)
                    for end in until:
                        texts[number] = texts[number].partition(end)[0]
        return texts

    def stops_at(self, until: tuple[str, ...]) -> Callable[[list[int]], bool]:
        """A function: whether the new tokens of a row hold one of the strings.

        As in lm_eval's HFLM, special tokens are part of the text that is searched, though not of
        the answer. White space inside of one does not count (pocket models have such tokens).
        """
        added = self.words.inner.added
        blank = {end for end in until if not end.strip() and any(end in text for text in added)}
        window = 16 + 4 * max(map(len, until), default=0)  # a character takes four tokens at most

        def is_over(new: list[int]) -> bool:
            tail = new[-window:]
            shown, whole = (self.words.decode(tail, special=special) for special in (False, True))
            return any(end in (shown if end in blank else whole) for end in until)

        return is_over

    def warn_of(self, cut: int) -> None:
        if cut:
            warnings.warn(
                f"contexts longer than the model's {self.max_length} tokens lost their beginning",
                stacklevel=3,
            )


def decoding(settings: dict, max_new_tokens: int) -> tuple[tuple[str, ...], int, Sampling | None]:
    """A task's generation_kwargs -> (strings that end a text, tokens at most, how to sample or None). Raises UserError for what we cannot do."""
    known = (
        "until",
        "max_gen_toks",
        "max_new_tokens",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "num_beams",
    )
    for name in settings:
        if name not in known:
            raise unknown("setting of generation_kwargs", name, known)
    until = settings.get("until") or []
    until = tuple(end for end in ([until] if isinstance(until, str) else until) if end)
    lengths = {
        settings[name] for name in ("max_gen_toks", "max_new_tokens") if name in settings
    } or {max_new_tokens}
    length = lengths.pop()
    if lengths or type(length) is not int or length < 1:
        raise UserError(
            f"generation_kwargs: one max_gen_toks of 1 or more is needed, not {settings}"
        )
    if settings.get("num_beams", 1) != 1:
        raise UserError(
            f"generation_kwargs: num_beams = {settings['num_beams']} is not supported, as `until` needs a single beam"
        )
    given = {name: settings[name] for name in ("temperature", "top_k", "top_p") if name in settings}
    if settings.get(
        "do_sample", bool(given.get("temperature"))
    ):  # a temperature alone asks for sampling, as for every model of the harness
        sampling = Sampling(**given)
        sampling.check()
        return until, length, sampling
    if (
        given.get("temperature", 0) not in (0, 1)
        or Sampling(**given | {"temperature": 1.0}) != Sampling()
    ):
        raise UserError(f"generation_kwargs: {given} have no meaning without do_sample = true")
    return until, length, None

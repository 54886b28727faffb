"""`vocab.json` with `merges.txt`: byte-level BPE, cut as GPT-2's (OPT, GPT-J) or as Qwen2's."""

from pathlib import Path

from files.errors import UserError
from files.reading import read_json, resolve_inside
from model.added_tokens import is_token_id, read_added_tokens
from model.tokenizer_bounds import QWEN2
from model.tokenizer_json import FileTokenizer, translate_errors

CUTS = {"GPT2Tokenizer": "gpt2", "CodeGenTokenizer": "gpt2", "Qwen2Tokenizer": "qwen2"}
CUTS_BY_MODEL = {"opt": "gpt2", "gptj": "gpt2", "gpt2": "gpt2", "qwen2": "qwen2", "qwen3": "qwen2"}


def cut_of(folder: Path, names: dict, config: dict) -> str:
    """How a text is cut before the merges: "gpt2" or "qwen2". Raises UserError for any other way.

    tokenizer_class says it, in tokenizer_config.json (`names`) or config.json, else model_type. As
    in transformers 5, model_type qwen2 counts more than the class, which is often wrong there.
    """
    kind = names.get("tokenizer_class") or config.get("tokenizer_class")
    model = config.get("model_type")
    if model == "qwen2":
        return "qwen2"
    if kind is None and isinstance(model, str) and model in CUTS_BY_MODEL:
        return CUTS_BY_MODEL[model]
    if isinstance(kind, str) and kind.removesuffix("Fast") in CUTS:
        return CUTS[kind.removesuffix("Fast")]
    given = f"tokenizer_class {kind!r:.60}" if kind else f"model_type {model!r:.40}"
    raise UserError(
        f"{folder}: vocab.json and merges.txt can be read as {' or '.join(CUTS)}, not for {given}: "
        "set tokenizer_class in tokenizer_config.json, or add the checkpoint's tokenizer.json"
    )


class MergesTokenizer(FileTokenizer):
    """A tokenizer of `vocab.json` and `merges.txt`. It has no template: nothing is put in front."""

    def __init__(self, folder: Path, special: set[str], names: dict, config: dict):
        """special: the names of special tokens in tokenizer_config.json, which is `names`."""
        from tokenizers import AddedToken, Tokenizer, decoders
        from tokenizers.models import BPE

        vocab, merges = resolve_inside(folder, "vocab.json"), resolve_inside(folder, "merges.txt")
        if not merges.is_file():
            raise UserError(f"{merges} is missing, {vocab.name} cannot be used without it")
        known = read_json(vocab)
        if not all(is_token_id(number) for number in known.values()):
            raise UserError(f"{vocab} does not hold token numbers")
        model = translate_errors(merges, lambda: BPE.from_file(str(vocab), str(merges)))
        self.inner = Tokenizer(model)
        self.inner.decoder = decoders.ByteLevel()
        added = read_added_tokens(folder, names)
        for token in added:
            hidden = token.text in special if token.special is None else token.special
            strip = {"lstrip": token.lstrip, "rstrip": token.rstrip}
            new = AddedToken(token.text, normalized=False, special=hidden, **strip)
            self.inner.add_tokens([new])
            if self.inner.token_to_id(token.text) != token.id:
                raise UserError(
                    f"{folder}: {token.text!r:.100} in added_tokens.json or tokenizer_config.json "
                    f"cannot have the number {token.id}, which does not follow the others"
                )
        self.note_added_tokens(special)
        self.cut_as(cut_of(folder, names, config), names.get("add_prefix_space") is True)
        self.prefix = []
        self.base_size = 1 + max(known.values(), default=-1)
        self.size = max([self.base_size, *(1 + token.id for token in added)])

    def cut_as(self, cut: str, add_prefix_space: bool) -> None:
        """Set the normalizer and the pre-tokenizer."""
        from tokenizers import Regex, normalizers, pre_tokenizers

        if cut == "gpt2":
            self.inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
            return
        split = pre_tokenizers.Split(Regex(QWEN2), behavior="isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False)
        self.inner.normalizer = normalizers.NFC()
        self.inner.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])

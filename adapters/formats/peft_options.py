"""Methods whose options are fields of PEFT's adapter_config.json: read and written alike.

HiRA, LN tuning, MiSS, RoAd, OFT, SHiRA and VeRA. A method names its type and fields there itself
(`peft_type`, `peft`).
"""

from dataclasses import replace

from torch.nn.functional import pad

from adapters.base import PREFIX
from adapters.config import METHODS
from adapters.formats.base_model import common
from adapters.formats.peft_beside import KEEPS, Adapters, Written
from adapters.formats.peft_fields import File
from adapters.formats.peft_places import as_targets, part
from files.errors import UserError
from model.language import LanguageModel

READ = ("hira", "ln_tuning", "miss", "road", "shira")  # kinds that `read_options` reads
WRITTEN = (*READ, "oft", "vera")
MORE = {"vera": {"save_projection": True, "bias": "none", "fan_in_fan_out": False}}


def read_options(kind: str, file: File) -> dict:
    """The table of one of READ; defaults are PEFT's.

    HiRA's ranks are those of its tensors: PEFT 0.21 passes over its rank_pattern.
    """
    fields, everywhere = file.fields, METHODS[kind].peft.items()
    options = {ours: getattr(fields, theirs) for ours, theirs in everywhere}
    options = {ours: value for ours, value in options.items() if value is not None}
    by_path = {path: dict(options) for path in file.paths}
    if kind == "hira":
        for path, here in by_path.items():
            A = file.tensors.get(f"{PREFIX}{path}.hira_A")
            here |= {} if A is None or not A.numel() else {"r": len(A)}
    return part(file.model, kind, by_path)


def read_oft(file: File) -> dict:
    """The size of the blocks follows from their number: PEFT's fields may have another."""
    fields, options = file.fields, {}
    terms = fields.num_cayley_neumann_terms
    if fields.use_cayley_neumann and terms < 3:
        raise fields.error("num_cayley_neumann_terms", "should be 3 at least")
    terms = max(terms, 4) if fields.use_cayley_neumann else 0  # of 3 PEFT makes 4
    for path in file.paths:
        R = file.tensors.get(f"{PREFIX}{path}.oft_R.weight")
        blocks = 1 if R is None or not R.numel() else len(R)
        size = file.model.get_submodule(path).in_features // blocks
        options[path] = {"block": size, "terms": terms}
    return part(file.model, "oft", options)


def write_options(model: LanguageModel, kind: str, adapters: Adapters) -> Written:
    """One of WRITTEN: every option has one value for all modules.

    HiRA's smaller ranks are filled up with zeros.
    """
    method = METHODS[kind]
    options, tensors = next(iter(adapters.values())).options, method.to_file(adapters)
    if kind == "hira":
        options = replace(options, r=max(adapter.options.r for adapter in adapters.values()))
        for key, tensor in tensors.items():
            columns = key.endswith("_B")
            more = options.r - tensor.shape[columns]
            tensors[key] = pad(tensor, (0, more) if columns else (0, 0, 0, more))
    for name in vars(options):
        values = [getattr(adapter.options, name) for adapter in adapters.values()]
        if any(value != values[0] for value in values) and (kind, name) != ("hira", "r"):
            raise UserError(f"PEFT has one {name} for all modules of a {kind} adapter; {KEEPS}")
    fields = {theirs: getattr(options, ours) for ours, theirs in method.peft.items()}
    fields |= MORE.get(kind, {})
    if kind == "oft":
        fields |= {"r": 0, "oft_block_size": options.block}
        fields |= {"use_cayley_neumann": options.terms > 0}
        fields |= {"num_cayley_neumann_terms": options.terms} if options.terms else {}
    targets = as_targets(model, list(adapters), layers=kind not in ("ln_tuning", "road", "shira"))
    return common(model, method.peft_type) | targets | fields, tensors

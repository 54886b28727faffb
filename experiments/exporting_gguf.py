"""Write what llama.cpp and Ollama run: GGUF files, and Ollama's Modelfile."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from adapters.formats.base_model import base_name
from adapters.formats.gguf_files import DTYPES, load_gguf
from adapters.formats.gguf_model import check_model, lora_of, write_lora, write_model
from adapters.merge import merge
from data.prompts import Template, template
from data.stored_template import stored_template
from experiments.base import dtype_named, load_tokenizer_of
from experiments.card import write_card
from experiments.merging import check_to_write, describe_adapters, load_stored
from files.errors import UserError, unknown
from files.writing import write_text
from model.quantize import dequantize
from model.tokenizer import Tokenizer
from train.settings import Settings

KINDS = ("merged", "lora", "both")
MODELFILE = "Modelfile"


def export_gguf(
    engine: str, settings: Settings, adapters: Sequence[Path], folder: Path, kind: str = "merged"
) -> tuple[str, str]:
    """Write what llama.cpp or Ollama take into `folder`, new or empty, with a model card.

    kind: "merged", one model with the adapters folded in; "lora", only the adapter, in float32
    unless the settings state a dtype; "both", the base and its LoRA. The model's matrices have its
    dtype. Returns (the adapters in words, the command that runs them). Raises UserError.
    """
    if kind not in KINDS:
        raise unknown("--gguf", kind, KINDS)
    if engine == "ollama" and kind == "lora":
        raise UserError("Ollama needs the base beside the LoRA: use --gguf both, or leave it out")
    load_gguf()
    check_to_write(settings, adapters, folder)
    model, _, runs = load_stored(settings, adapters, average=False)
    check_model(model)
    described = describe_adapters(model)
    tokenizer = load_tokenizer_of(settings, model)
    prompt = stored_template(runs, tokenizer) or template("auto", tokenizer, is_own=True)
    if kind == "merged":
        merge(model)
    else:
        lora_of(model)  # before anything is written
        dequantize(model)
    dtype = dtype_named(settings.dtype) or torch.float32  # of the LoRA
    own = model.input_embedding.weight.dtype
    whole = f"model-{DTYPES[own][0]}.gguf" if kind != "lora" else ""
    lora = f"lora-{DTYPES[dtype][0]}.gguf" if kind != "merged" else ""
    recipe = modelfile(whole, lora, prompt, tokenizer) if engine == "ollama" else ""
    if whole:
        write_model(model, tokenizer, folder / whole, jinja(prompt))
    if lora:
        write_lora(model, folder / lora, dtype)
    if recipe:
        write_text(folder / MODELFILE, recipe)
    base = base_name(model)

    def command(at: str) -> str:
        if engine == "ollama":
            name = re.sub(r"[^a-z0-9._-]+", "-", adapters[0].parent.name.lower()) or "adapter"
            return f"ollama create {name} -f {at}{MODELFILE} && ollama run {name}"
        words = f"llama-cli -m {at}{whole}" if whole else "llama-cli -m BASE.gguf"
        words += f" --lora {at}{lora}" if lora else ""
        return words if whole else f"{words}  # BASE.gguf: of {base}; --gguf both writes it"

    words = f"{described}, merged" if kind == "merged" else described
    trained = list(zip(adapters, runs, strict=True))
    write_card(folder, base, "gguf", words, trained, prompt, command(""))
    return words, command(shlex.quote(f"{folder}/"))


def jinja(prompt: Template) -> str:
    """A prompt template as the chat template of a GGUF file: the same text for the same turns."""
    if prompt.chat:
        return prompt.text
    mark = "{instruction}"
    (first, end), (later, _) = (
        text.split(mark) for text in (prompt.text, prompt.fill(mark, "", later=True))
    )
    first, later, end = (json.dumps(text, ensure_ascii=False) for text in (first, later, end))
    content = "message['content']" + " | trim" * prompt.strip
    return (
        "{%- set asked = namespace(before=false) -%}{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}"
        f"{{{{ ({later} if asked.before else {first}) + ({content}) + {end} }}}}"
        "{%- set asked.before = true -%}"
        f'{{%- else -%}}{{{{ ({content}) + "\\n\\n" }}}}{{%- endif -%}}{{%- endfor -%}}'
    )


def modelfile(whole: str, lora: str, prompt: Template, tokenizer: Tokenizer) -> str:
    """Ollama's Modelfile. Raises UserError for a prompt that it cannot hold."""
    asked = prompt.prompt({"instruction": "{{ .Prompt }}"})
    system = "" if prompt.chat else "{{ if .System }}{{ .System }}\n\n{{ end }}"
    end = tokenizer.decode([tokenizer.eos_id], special=True)
    text = f"{system}{asked}{{{{ .Response }}}}{end}"
    if '"""' in text:
        raise UserError('a Modelfile cannot hold a prompt with """: use --for llama.cpp')
    adapter = f"ADAPTER ./{lora}\n" if lora else ""
    return f'FROM ./{whole}\n{adapter}TEMPLATE """{text}"""\n'

"""Prompt templates: how an instruction becomes the text a model continues. Stored with the adapter, used again in evaluation."""

from model.errors import unknown

PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\n"
RESPONSE = "\n\n### Response:\n"

TEMPLATES = {
    "alpaca": PREAMBLE + "{instruction}" + RESPONSE,  # Taori et al. 2023
    "plain": "{instruction}\n",
}


def prompt(template: str, instruction: str) -> str:
    """The text in front of the response. Raises UserError for an unknown template."""
    if template not in TEMPLATES:
        raise unknown("prompt template", template, TEMPLATES)
    return TEMPLATES[template].replace("{instruction}", instruction.strip())

"""The prompt template that an adapter's file holds."""

from dataclasses import fields

from data.prompts import LARGEST, Template, template
from files.errors import UserError


def template_from(table: dict) -> Template:
    """A Template from what `table()` made of one. Raises UserError when it is malformed."""
    types = {field.name: field.type for field in fields(Template)}
    special = table.get("special", {}) if isinstance(table, dict) else None
    fits = isinstance(special, dict) and all(
        isinstance(text, str) for pair in special.items() for text in pair
    )
    if (
        not fits
        or not {"name", "text"} <= table.keys()
        or not all(
            key in types and (key == "special" or isinstance(value, types[key]))
            for key, value in table.items()
        )
    ):
        raise UserError("the prompt template that is stored with the adapter is malformed")
    slots = table.get("chat", False) or (
        "{instruction}" in table["text"]
        and (
            not table.get("with_input")
            or all(slot in table["with_input"] for slot in ("{instruction}", "{input}"))
        )
    )
    if not slots or len(table["text"]) > LARGEST:
        wrong = "is too long" if slots else "has no place for instruction or input"
        raise UserError(f"the prompt template that is stored with the adapter {wrong}")
    return Template(**table | {"special": tuple(sorted(special.items()))})


def stored_template(runs: list[dict], tokenizer=None) -> Template | None:
    """The template that adapters were trained with, by their files; None if they name none.

    Raises UserError when they differ, since one prompt cannot suit both.
    """
    found = {
        template_from(run["template_text"])
        if "template_text" in run
        else template(run["template"], tokenizer)
        for run in runs
        if isinstance(run.get("template"), str)
    }
    if len(found) > 1:
        raise UserError(
            "the adapters were trained with different prompt templates: "
            + ", ".join(sorted(one.name for one in found))
        )
    return next(iter(found), None)

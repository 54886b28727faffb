"""The prompt template that an adapter's file holds."""

from data.prompts import LARGEST, Template, template
from files.errors import UserError
from files.typed import from_table, typed


def template_from(table: dict) -> Template:
    """A Template from what `table()` made of one. Raises UserError when it is malformed."""
    stored = "the prompt template that is stored with the adapter"
    try:
        table = typed(table, dict, stored, "")
        special = typed(table.get("special", {}), dict[str, str], stored, "special")
        made = from_table(Template, table | {"special": sorted(special.items())}, stored)
    except UserError:
        raise UserError(f"{stored} is malformed") from None
    given = not made.with_input or all(s in made.with_input for s in ("{instruction}", "{input}"))
    slots = made.chat or ("{instruction}" in made.text and given)
    if not slots or len(made.text) > LARGEST:
        wrong = "is too long" if slots else "has no place for instruction or input"
        raise UserError(f"{stored} {wrong}")
    return made


def stored_template(runs: list[dict], tokenizer=None) -> Template | None:
    """The template that adapters were trained with, by their files; None if they name none.

    Raises UserError when they differ, since one prompt cannot suit both.
    """
    named = [run for run in runs if isinstance(run.get("template"), str)]
    found = {
        template_from(run["template_text"])
        if "template_text" in run
        else template(run["template"], tokenizer)
        for run in named
    }
    if len(found) > 1:
        names = ", ".join(sorted(one.name for one in found))
        raise UserError(f"the adapters were trained with different prompt templates: {names}")
    return next(iter(found), None)

"""README and the repository agree: commands, links, tree, results, picture."""

import json
import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from processes import ROOT
from repository import BLOCK, PAGES, ROOMS, ROOT, name_of, tracked

import run as command_line
from adapters.config import METHODS, presets
from model import llama

README = PAGES[0].read_text(encoding="utf-8")
TWO_COMMANDS = (
    "pip install -r requirements.txt && python run.py",
    "pip install -r requirements-dev.txt && python -m pytest",
)


# ---------------------------------------------------------------- size, tree, tables


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 250


@pytest.mark.parametrize("page", PAGES[:3], ids=name_of)
def test_lines_are_short(page):
    """Tables and pictures may be wider."""
    prose = BLOCK.sub("", page.read_text(encoding="utf-8")).splitlines()
    assert not [line for line in prose if len(line) > 100 and not line.startswith(("|", "  <"))]


def tree() -> list[str]:
    """The first column of the file tree, in its order."""
    block = next(text for _, text in BLOCK.findall(README) if text.startswith("run.py "))
    return [line.split()[0] for line in block.splitlines()]


def test_the_tree_and_the_repository_agree():
    """Every entry exists; every module at the root and every folder with modules has an entry."""
    entries = tree()
    missing = [entry for entry in entries if not (ROOT / entry).exists()]
    assert not missing
    files = [Path(name) for name in tracked() if not name.startswith((".", "tests/"))]
    modules = [path for path in files if path.suffix == ".py"]
    needed = {f"{path.parent}/" if path.parent.name else path.name for path in modules}
    needed |= {f"{path.parts[0]}/" for path in files if len(path.parts) > 1} | {"tests/"}
    assert needed <= set(entries)


def test_the_tree_is_in_the_order_of_the_import_rule():
    assert [entry[:-1] for entry in tree() if entry[:-1] in ROOMS] == list(ROOMS)


def table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head."""
    text = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.search(r"^\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)[1]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows.splitlines()]


def test_every_preset_is_in_the_table_of_methods():
    named = [name for row in table("Methods") for name in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(named) == sorted(presets())


def test_the_results_are_those_of_the_page_of_results():
    """The short table shows rows of the long one."""
    rows = [
        row for row in README.splitlines() if re.match(r"\| (\*\*Mul|the same, t|trained p)", row)
    ]
    assert len(rows) == 3
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    assert not [row for row in rows if row not in results]


def planned_runs() -> list[list[str]]:
    return table("Your card")


@pytest.mark.slow
@pytest.mark.parametrize("row", planned_runs(), ids=lambda row: row[1])
def test_the_plans_of_the_readme(row, capsys):
    """Memory and time of the table are what `plan` computes."""
    card, command, memory, time, rate = row
    arguments = [
        "plan",
        *shlex.split(command.strip("`")),
        "--rows",
        "3260",
        "--flops",
        rate,
        "--json",
    ]
    arguments += ["--device", "cpu"] if card == "CPU" else ["--memory", card]
    assert command_line.main(arguments) == 0
    plan = json.loads(capsys.readouterr().out)
    needs = [max(d["training_bytes"], d["answering_bytes"]) for d in plan["devices"]]
    assert [f"{need / 1e9:.1f} GB" for need in needs] == memory.split(", ")
    number, unit = time.split()
    seconds = float(number) * {"min": 60, "h": 3600}[unit]
    assert plan["seconds"] == pytest.approx(seconds, rel=0.03)


# ---------------------------------------------------------------- commands


def commands(text: str) -> list[list[str]]:
    """The arguments of every `python run.py ...` in a page's code blocks."""
    blocks = [code for language, code in BLOCK.findall(text) if language in ("", "bash")]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    calls = [
        line.split("run.py", 1)[1] for line in lines if re.search(r"(python|srun.*) run\.py", line)
    ]
    return [shlex.split(call, comments=True) for call in calls if "$" not in call]


def parse(arguments: list[str]) -> None:
    name = arguments[0] if arguments and not arguments[0].startswith("-") else "train"
    assert name in command_line.COMMANDS, arguments
    parser = command_line.build_parser(name)
    parser.parse_args(arguments[1:] if arguments[:1] == [name] else arguments)


def test_the_two_commands_are_in_the_readme_and_in_ci():
    ci = (ROOT / ".ci" / "run").read_text()
    for command in TWO_COMMANDS:
        assert command in README.splitlines()
        assert command.replace("install", "install -q") in ci


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_page_parses(page):
    for arguments in commands(page.read_text(encoding="utf-8")):
        parse(arguments)


def test_the_commands_are_found():
    assert len(commands(README)) >= 8
    for row in planned_runs():
        parse(shlex.split(row[1].strip("`")))


def test_the_python_block_runs(tmp_path, monkeypatch):
    block = next(text for language, text in BLOCK.findall(README) if language == "python")
    monkeypatch.chdir(tmp_path)  # it saves an adapter
    exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "my-adapter" / "adapter_config.json").is_file()


# ---------------------------------------------------------------- links and the picture


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def links(page: Path) -> list[str]:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    return [link or source for link, source in found]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_of_a_page_leads_somewhere(page):
    for link in links(page):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert ROOT in (target, *target.parents), link
        assert not anchor or anchor in anchors(target), link


def test_the_links_are_found():
    assert {"docs/tour.md", "docs/picture-dark.svg", "LICENSE", "minimal.py"} <= set(
        links(PAGES[0])
    )
    every = {name_of(page) for page in PAGES if page.parent.name == "docs"}
    assert every <= set(links(PAGES[0]))


SVG = "{http://www.w3.org/2000/svg}"


def picture(scheme: str) -> ElementTree.Element:
    return ElementTree.parse(ROOT / "docs" / f"picture-{scheme}.svg").getroot()


def test_the_picture_has_every_site_of_llama():
    for scheme in ("light", "dark"):
        texts = [text for text in picture(scheme).iter(f"{SVG}text") if text.get("class") == "sn"]
        names = [text.text for text in texts]
        assert sorted(names) == sorted([*llama.SITES, *llama.OUTER_SITES])


def test_the_pictures_differ_in_colours_only():
    light, dark = (picture(scheme) for scheme in ("light", "dark"))
    for root in (light, dark):
        style = root.find(f"{SVG}style")
        style.text = re.sub(r"#[0-9a-f]{6}", "", style.text)
    assert ElementTree.tostring(light) == ElementTree.tostring(dark)


def test_the_picture_has_the_kinds_of_methods():
    """full and token_rows are not: they train a part of the base itself. In the legend alone are
    LoRA's relatives, which sit at any Linear, and bitfit (dots).
    """
    shown = {
        "series": "bottleneck",
        "parallel": "bottleneck",
        "LoRA": "lora",
        "IA³": "ia3",
        "prefix": "prefix",
        "prompt · P-tuning": "prompt p_tuning",
        "invertible": "invertible",
        "inverse": "invertible",
        "LN-tuning": "ln_tuning",
        "fusion": "fusion",
        "LoReFT": "loreft",
        "×": "ia3",
        "+": "",
    }
    groups = [group.find(f"{SVG}text").text for group in picture("light").iter(f"{SVG}g")]
    assert set(groups) == set(shown)
    relatives_of_lora = {"dora", "pissa", "eva", "loftq", "adalora", "vera", "hira", "miss"}
    relatives_of_lora |= {"road", "oft", "shira"}
    drawn = {kind for kinds in shown.values() for kind in kinds.split()}
    assert set(METHODS) - drawn == relatives_of_lora | {"bitfit", "full", "token_rows"}

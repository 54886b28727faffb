"""Runs on a user's own data: conversations, plain text, what is held out, which template is
taken.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import run as command_line
from adapters import load_adapter, use
from data.batches import pack_text
from data.prompts import template
from data.sources import load_data
from experiments.rows import encode_rows
from model import UserError, load_model, load_tokenizer
from model.registry import POCKET
from train.measure import mean_loss
from train.settings import settings

CHATML = (
    "{% for m in messages %}{{ '[' + m.role + ']' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def write_chats(path: Path, count: int = 30) -> Path:
    lines = [
        {"messages": [{"role": "user", "content": f"Tom has {n} pens. How many?"},
                      {"role": "assistant", "content": f"{n} pens."},
                      {"role": "user", "content": "And one more?"},
                      {"role": "assistant", "content": f"Then {n + 1} pens."}]}
        for n in range(count)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def chat_model(tmp_path) -> Path:
    """pocket-llama with a chat template."""
    folder = tmp_path / "chat-model"
    shutil.copytree(POCKET / "llama", folder)
    names = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"chat_template": CHATML}))
    return folder


def run(*arguments) -> int:
    few = (
        "--dtype float32 --max-steps 2 --set train.warmup_steps=0 --set train.batch_size=4"
    ).split()
    return command_line.main([*map(str, arguments), *few])


def test_a_run_on_conversations_measures_the_loss_before_and_after(tmp_path, chat_model, capsys):
    data, out = write_chats(tmp_path / "chats.jsonl"), tmp_path / "out"
    assert run("--data", data, "--model", chat_model, "--adapter", "lora", "--out", out) == 0
    said = capsys.readouterr().out
    assert "prompt   chat (the tokenizer's own, as the data is yours)" in said
    assert "held out (test_share), to measure the loss on before and after: 3 of the rows" in said
    result = json.loads((out / "result.json").read_text())
    loss = result["held_out_loss"]
    assert (
        f"held-out loss per token: {loss['before']:.4f} before, {loss['after']:.4f} after (rows: 3)"
        in said
    )
    assert result["after"] == {}

    # the same figures by hand
    model, tokenizer = load_model(str(chat_model), torch.float32), load_tokenizer(str(chat_model))
    rows = load_data(str(data)).held_out
    form = template("chat", tokenizer)
    s = settings(config=str(out / "run.toml"))
    assert s.template == "chat"  # what was chosen is saved
    examples = encode_rows(tokenizer, rows, False, form, s).examples
    assert mean_loss(model, examples, 2, 0) == pytest.approx(loss["before"], abs=6e-5)
    load_adapter(model, out / "adapter", "default")
    use(model, ["default"])
    assert mean_loss(model, examples, 2, 0) == pytest.approx(loss["after"], abs=6e-5)
    assert loss["after"] < loss["before"]
    assert command_line.main(["evaluate", str(out)]) == 0  # the same rows, the same figure
    said = capsys.readouterr().out
    assert f"held-out loss per token: {loss['after']:.4f} (rows: 3)" in said
    measured = json.loads((out / "evaluate" / "result.json").read_text())
    assert measured["held_out_loss"] == {"rows": 3, "loss": loss["after"]}
    assert CHATML in str(json.loads((out / "adapter" / "adapter_config.json").read_text()))


def test_before_is_the_base_also_where_training_starts_elsewhere(tmp_path):
    """The paper's own parallel adapter does not start at the base."""
    data, out = write_chats(tmp_path / "chats.jsonl"), tmp_path / "out"
    assert run("--data", data, "--adapter", "paper-parallel", "--out", out) in (0, 1)
    tokenizer, s = load_tokenizer("pocket-llama"), settings(config=str(out / "run.toml"))
    rows = load_data(str(data)).held_out
    examples = encode_rows(tokenizer, rows, False, template("alpaca"), s).examples
    base = mean_loss(load_model("pocket-llama", torch.float32), examples, 2, 0)
    result = json.loads((out / "result.json").read_text())
    assert result["held_out_loss"]["before"] == pytest.approx(base, abs=6e-5)


def test_without_a_chat_template_conversations_take_alpacas(tmp_path, capsys):
    data = write_chats(tmp_path / "chats.jsonl", 12)
    data.write_text(data.read_text() + '\n{"messages": []}')
    assert run("--data", data, "--adapter", "lora", "--out", tmp_path / "out") == 0
    assert "prompt   alpaca; answers" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<small>1 rows left out that cannot be used</small>" in page


def test_named_templates_and_the_papers_sets_are_left(tmp_path, chat_model):
    tokenizer = load_tokenizer(str(chat_model))
    assert template("alpaca", tokenizer, is_own=True).name == "alpaca"
    data = load_data("wordproblems")
    assert not data.is_own
    assert load_data(str(write_chats(tmp_path / "a.jsonl"))).is_own
    rows = [{"instruction": "a", "answer": "1"}] * 3
    (tmp_path / "t.json").write_text(json.dumps(rows))
    assert load_data("none", tests=[str(tmp_path / "t.json")]).is_own
    assert not load_data("wordproblems", tests=[str(tmp_path / "t.json")]).is_own


def test_plain_text_is_packed_and_a_share_of_its_rows_held_out(tmp_path, capsys):
    text = " ".join(f"Tom has {n} pens." for n in range(400))
    (tmp_path / "book.txt").write_text(text)
    out = tmp_path / "out"
    size = ("--set", "train.cutoff=64")
    assert run("--data", tmp_path / "book.txt", "--adapter", "lora", "--out", out, *size) == 0
    tokens = len(load_tokenizer("pocket-llama").encode(text)) + 1
    rows = -(-tokens // 64)
    said = capsys.readouterr().out
    assert f"plain text: 1 text, {tokens:,} tokens, packed into {rows} rows of 64" in said
    assert "prompt   " not in said
    loss = json.loads((out / "result.json").read_text())["held_out_loss"]
    assert loss["rows"] == round(0.1 * rows)
    assert loss["after"] < loss["before"]
    about = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert "template_text" not in json.dumps(about)
    assert command_line.main(["evaluate", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"held-out loss per token: {loss['after']:.4f} (rows: {loss['rows']})" in said
    assert f"data {(tmp_path / 'book.txt').resolve()}, plain text\n" in said
    assert "template" not in said


def test_packing_loses_and_invents_no_token():
    tokenizer = load_tokenizer("pocket-llama")
    texts = ["Tom has 3 pens.", "Amy gives Tom 4 more.", "How many?"]
    rows, tokens = pack_text(tokenizer, texts, 7)
    joined = [token for text in texts for token in [*tokenizer.encode(text), tokenizer.eos_id]]
    assert tokens == len(joined)
    assert [token for row in rows for token in row.ids] == joined
    assert [len(row) for row in rows[:-1]] == [7] * (len(rows) - 1)
    assert all(row.weights == [1.0] * len(row) for row in rows)


def test_rows_that_a_template_refuses_are_left_out(tmp_path):
    lines = [{"messages": [{"role": "assistant", "content": "Hello."}]}] * 2
    path = write_chats(tmp_path / "chats.jsonl", 5)
    path.write_text("\n".join([path.read_text(), *map(json.dumps, lines)]))
    tokenizer, form, s = load_tokenizer("pocket-llama"), template("alpaca"), settings()
    rows = load_data(str(path), test_share=0.0).train
    encoded = encode_rows(tokenizer, rows, False, form, s)
    assert len(encoded.examples) == 5
    assert encoded.lines[0].startswith(
        "2 of 7 rows are left out, the template has no form for them: "
    )
    assert encoded.lines[0].endswith("before it (2, the first with 'Hello.')")  # one reason, once
    assert encoded.refused == 2
    held_out = encode_rows(tokenizer, rows[5:], False, form, s, held_out=True)
    assert (held_out.examples, held_out.refused) == ([], 2)
    assert held_out.lines[0].startswith("2 of 2 held-out rows are left out")
    with pytest.raises(UserError, match=r"\(--strict-rows\)"):
        encode_rows(tokenizer, rows, False, form, replace(s, strict_rows=True))
    with pytest.raises(UserError, match="no place for an assistant turn"):
        encode_rows(tokenizer, rows[5:], False, form, s)


def test_chat_lines_say_what_a_template_does(tmp_path, chat_model):
    def lines(text: str) -> list[str]:
        names = json.loads((chat_model / "tokenizer_config.json").read_text())
        (chat_model / "tokenizer_config.json").write_text(
            json.dumps(names | {"chat_template": text})
        )
        tokenizer = load_tokenizer(str(chat_model))
        rows = [{"instruction": "a", "output": "b"}]
        return encode_rows(tokenizer, rows, False, template("chat", tokenizer), settings()).lines

    thinks = CHATML.replace("'[assistant]'", "'[assistant]<think>\\n'")
    assert "opens <think> only in the prompt" in lines(thinks)[0]
    unended = (
        "{% for m in messages %}{{ '[' + m.role + ']' }}"
        "{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}{% endfor %}"
    )
    assert "the end of a turn: it is not trained" in lines(unended)[0]
    assert lines(CHATML) == []


def test_strict_rows_and_the_notes_of_data_show(tmp_path, capsys):
    path = write_chats(tmp_path / "chats.jsonl", 20)
    assert command_line.main(["data", "show", str(path), "--rows", "1"]) == 0
    said = capsys.readouterr().out
    assert "18 rows to train on" in said
    assert "held out (10%, test_share) to measure the loss on: 2 rows without answers" in said
    path.write_text(path.read_text() + '\n{"messages": []}')
    assert command_line.main(["data", "check", str(path)]) == 0
    said = capsys.readouterr().out
    assert "rows       20; 0 test problems" in said, "a check counts the rows a run would hold out"
    assert "line 21: is an empty list of messages" in said
    assert command_line.main(["data", "check", str(path), "--strict-rows"]) == 1
    assert "(--strict-rows)" in capsys.readouterr().err
    assert run("--data", path, "--strict-rows", "--out", tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()


def test_the_loss_of_a_long_text_does_not_depend_on_micro_batches():
    tokenizer, model = load_tokenizer("pocket-llama"), load_model("pocket-llama")
    rows, _ = pack_text(tokenizer, ["Tom has 3 pens. Amy gives Tom 4 more."] * 9, 16)
    losses = [mean_loss(model, rows, size, 0) for size in (1, 3)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert torch.tensor(losses).isfinite().all()


def test_an_instruction_takes_the_chat_template(chat_model, capsys):
    def answer(*more) -> tuple[str, str]:
        asked = ["generate", "--model", str(chat_model), "--instruction", "Add 1 and 2."]
        assert command_line.main([*asked, "--max-new-tokens", "8", *more]) == 0
        said = capsys.readouterr()
        return said.out, said.err

    text, note = answer()
    assert note == "prompt template: chat, the tokenizer's own; --template chooses another\n"
    assert answer("--template", "chat") == (text, "")
    assert answer("--template", "alpaca")[0] != text

"""A plan as lines of text."""

from experiments.comparable import loss_over
from model.show import size_text
from train.plan.advice import SLACK

ROWS = (  # title, key of the bytes, note on the right
    ("weights", "weights_bytes", ""),
    ("adapter", "adapter_bytes", ""),
    ("gradients", "gradients_bytes", ""),
    ("optimizer", "optimizer_bytes", ""),
    (
        "activations",
        "activation_bytes",
        "at the peak, beside all of the above; a forward pass keeps {kept}{whole}",
    ),
    ("training", "training_bytes", "in all, at the peak of a step"),
    (
        "answering",
        "answering_bytes",
        "in all: weights, adapter, keys and values of all tokens, logits",
    ),
    ("packed", "packed_bytes", "{packed}"),
    ("memory", "memory_bytes", ""),
    ("usable", "usable_bytes", "memory - {own} {of} - {slack:.0f}% fragmentation and workspaces"),
    ("left", "left_bytes", ""),
)


def plan_text(facts: dict) -> str:
    """The table of `plan_run` for a terminal, a column for each device."""
    devices = facts["devices"]
    lines = [*about_lines(facts), "", row("", [device["device"] for device in devices])]
    if len(devices) > 1:
        lines.append(row("blocks", [device["blocks"] for device in devices]))
    whole = ""
    if facts["shard"]:
        gathered = size_text(devices[0]["gathered_bytes"])
        whole = f"; blocks that are whole among them take {gathered}"
    kind = devices[0]["device"].partition(":")[0]
    own, several = size_text(facts["own_use_bytes"]), facts["processes"] > 1
    of = "Python" if kind == "cpu" else "CUDA context and NCCL" if several else "CUDA context"
    kept = " + ".join(size_text(device["kept_by_forward_bytes"]) for device in devices)
    packed = "of these: the second copy of the weights (eval.decode_memory)"
    if facts["decode_memory"] == "auto":
        packed = "more if half of the free memory holds it: a second copy of the weights, for speed"
    for title, key, note in ROWS:
        if key in devices[0]:
            more = {"slack": 100 * SLACK[kind], "own": own, "of": of, "packed": packed}
            note = note.format(kept=kept, whole=whole, **more)
            lines.append(row(title, [signed(device[key]) for device in devices], note))
    if facts["host_bytes"]:
        lines.append(
            f"{'host':12}{size_text(facts['host_bytes']):>14}  of the CPU's memory, pinned, for "
            "offloaded activations"
        )
    if "fits" in facts:
        lines.append(row("fits", ["yes" if device["fits"] else "no" for device in devices]))
    lines += ["", time_line(facts)]
    if len(devices) > 1:
        blocks = ",".join(str(device["blocks"]) for device in devices)
        lines.append(f"split    --set layers_per_device=[{blocks}] lays the blocks so")
    if facts.get("fits") is False:
        lines.append(f"to fit   {advice_text(facts)}")
    if devices[0]["device"] == "cpu":
        lines.append(
            "note     glibc's malloc keeps more than tensors need; MALLOC_MMAP_THRESHOLD_=65536 "
            "in the environment makes it give that back"
        )
    return "\n".join(lines)


def about_lines(facts: dict) -> list[str]:
    """What the plan is for: model, adapter, step and answers."""
    weights = facts["dtype"] + (f" and {facts['quantize']}" if facts["quantize"] else "")
    lines = [
        f"model    {facts['model']}: {facts['parameters']:,} parameters, "
        f"{size_text(facts['weight_bytes_16_bit'])} in 16 bits; here {weights}",
        f"adapter  {facts['adapter']} at {facts['where']}: {facts['trainable_parameters']:,} "
        f"parameters, {100 * facts['trainable_share']:.3f}% of the model, a file of "
        f"{size_text(facts['adapter_file_bytes'])}",
        f"step     {facts['batch_size']} rows of {facts['length']} tokens, "
        f"{facts['micro_batch_size']} at once, {100 * facts['labelled']:.0f}% of them with a "
        f"label; checkpointing {facts['checkpointing']}",
    ]
    checked = f", {facts['validation_rows']} rows held out to validate" * (
        facts["validation_rows"] > 0
    )
    steps = facts["max_steps"]
    length = f"steps    {steps:,}" if steps else f"epochs   {facts['epochs']}"
    lines.append(
        f"{length} at a learning rate of {facts['learning_rate']:g}, "
        f"{loss_over(facts['prompt_weight'])}{checked}"
    )
    if facts["processes"] > 1:
        together = ", which hold the blocks together" * facts["shard"]
        lines.append(
            f"over     {facts['processes']} processes, each with a device of its own{together}; "
            "below: what one has"
        )
    with_beams = f", {facts['beams']} beams" * (facts["beams"] > 1)
    lines.append(
        f"answers  {facts['answers_at_once']} prompts of {facts['length']} tokens at once, "
        f"{facts['max_new_tokens']} new ones each{with_beams}"
    )
    return lines


def row(title: str, cells: list, note: str = "") -> str:
    return f"{title:12}" + "".join(f"{cell:>14}" for cell in cells) + f"  {note}" * bool(note)


def signed(size: int) -> str:
    return size_text(size) if size >= 0 else f"-{size_text(-size)}"


def advice_text(facts: dict) -> str:
    """The options that make the run fit, or what was tried."""
    if facts["advice"]:
        return f"add {facts['advice']}"
    if facts["processes"] > 1:
        tried = (
            "recomputation, one row at once, the blocks over all processes and over eight times "
            "as many"
        )
    else:
        second = ", a second card" * (facts["devices"][0]["device"] != "cpu")
        tried = f"recomputation, one row at once, nf4{second}"
    return f"none of the changes tried is enough: {tried}"


def time_line(facts: dict) -> str:
    work = f"time     {facts['flops_per_step']:.3g} floating-point operations a step"
    if facts["flops_per_second"] is None:
        return f"{work}; --flops 150T or --measure makes it a time"
    rate, seconds = facts["flops_per_second"], time_text(facts["seconds_per_step"])
    whole = "; --rows says how many there are"
    if facts["steps"]:
        whole = f"; {facts['steps']:,} steps {time_text(facts['seconds'])}"
    return f"{work}, at {rate:.3g} a second {seconds}{whole}"


def time_text(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

"""A plan as lines of text."""

from model.show import size_text
from train.plan.advice import CONTEXT, SLACK

ROWS = (  # of the table: what is said, the key of the bytes
    ("weights", "weights_bytes"),
    ("adapter", "adapter_bytes"),
    ("gradients", "gradients_bytes"),
    ("optimizer", "optimizer_bytes"),
    ("activations", "activation_bytes"),
    ("training", "training_bytes"),
    ("answering", "answering_bytes"),
    ("memory", "memory_bytes"),
    ("for tensors", "usable_bytes"),
    ("left", "left_bytes"),
)


def plan_text(facts: dict) -> str:
    devices = facts["devices"]
    weights = facts["dtype"] + (f" and {facts['quantize']}" if facts["quantize"] else "")
    lines = [
        f"model    {facts['model']}: {facts['parameters']:,} parameters, {size_text(facts['weight_bytes_16_bit'])} in 16 bits; here {weights}",
        f"adapter  {facts['adapter']} at {facts['where']}: {facts['trainable_parameters']:,} parameters, {100 * facts['trainable_share']:.3f} % of the model, "
        f"a file of {size_text(facts['adapter_file_bytes'])}",
        f"step     {facts['batch_size']} rows of {facts['length']} tokens, {facts['micro_batch_size']} at once, {100 * facts['labelled']:.0f} % of them with a "
        f"label; checkpointing {facts['checkpointing']}",
        f"answers  {facts['answers_at_once']} prompts of {facts['length']} tokens at once, {facts['max_new_tokens']} new ones each",
        "",
        f"{'':12}" + "".join(f"{one['device']:>14}" for one in devices),
    ]
    if facts["processes"] > 1:
        together = ", which hold the blocks together" * facts["shard"]
        lines.insert(
            3,
            f"over     {facts['processes']} processes, each with a device of its own{together}; below what one has",
        )
    if len(devices) > 1:
        lines.append(f"{'blocks':12}" + "".join(f"{one['blocks']:14}" for one in devices))
    whole = (
        f"; blocks that are whole among them take {size_text(devices[0]['gathered_bytes'])}"
        if facts["shard"]
        else ""
    )
    for said, key in ROWS:
        if key in devices[0]:
            lines.append(
                f"{said:12}"
                + "".join(f"{signed(one[key]):>14}" for one in devices)
                + NOTES.get(key, "").format(kept=kept_text(devices), whole=whole)
            )
    if "fits" in facts:
        lines.append(
            f"{'fits':12}" + "".join(f"{'yes' if one['fits'] else 'no':>14}" for one in devices)
        )
    lines += ["", *time_lines(facts)]
    if len(devices) > 1:
        lines.append(
            f"split    --set layers_per_device=[{','.join(str(one['blocks']) for one in devices)}] lays the blocks so"
        )
    if facts.get("fits") is False:
        advice = facts["advice"]
        if facts["processes"] > 1:
            tried = "recomputation, one row at once, the blocks over all processes and over eight times as many"
        else:
            tried = "recomputation, one row at once, nf4" + ", a second card" * (
                devices[0]["device"] != "cpu"
            )
        lines.append(
            "to fit   "
            + (f"add {advice}" if advice else f"none of the changes tried is enough: {tried}")
        )
    if devices[0]["device"] == "cpu":
        lines.append(
            "note     glibc's malloc keeps more than tensors need; MALLOC_MMAP_THRESHOLD_=65536 in the environment makes it give that back"
        )
    return "\n".join(lines)


NOTES = {
    "activation_bytes": "  at the peak, beside all of the above; a forward pass keeps {kept}{whole}",
    "training_bytes": "  in all, at the peak of a step",
    "answering_bytes": "  in all: weights, adapter, keys and values of all tokens, logits",
    "usable_bytes": f"  less {size_text(CONTEXT)} that CUDA or Python takes, and {100 * SLACK:.0f} % that an allocator cannot hand out again",
}


def kept_text(devices: list[dict]) -> str:
    return " + ".join(size_text(one["kept_by_forward_bytes"]) for one in devices)


def signed(size: int) -> str:
    return size_text(size) if size >= 0 else f"-{size_text(-size)}"


def time_lines(facts: dict) -> list[str]:
    work = f"time     {facts['flops_per_step']:.3g} floating-point operations a step"
    if facts["flops_per_second"] is None:
        return [f"{work}; --flops 150T or --measure makes it a time"]
    line = f"{work}, at {facts['flops_per_second']:.3g} a second {time_text(facts['seconds_per_step'])}"
    whole = (
        f"; {facts['steps']:,} steps {time_text(facts['seconds'])}"
        if facts["steps"]
        else "; --rows says how many there are"
    )
    return [line + whole]


def time_text(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

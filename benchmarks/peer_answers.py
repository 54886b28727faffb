"""Answers of transformers to prompts in a file, as a program of its own: nothing of this project.

python -P benchmarks/peer_answers.py MODEL JOBS OUT: JOBS is JSON with prompts (token ids), stop,
dtype, new, batch, beams and use_cache; OUT gets the new tokens of each.
"""

import json
import sys


def main(model: str, jobs_file: str, out_file: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with open(jobs_file) as file:
        job = json.load(file)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, job["dtype"])).eval()
    base.generation_config.eos_token_id = None
    answers = []
    for first in range(0, len(job["prompts"]), job["batch"]):
        rows = job["prompts"][first : first + job["batch"]]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        with torch.inference_mode():
            out = base.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=job["new"],
                num_beams=job["beams"],
                use_cache=job["use_cache"],
                do_sample=False,
                pad_token_id=0,
                eos_token_id=job["stop"] or None,
            )
        answers += out[:, longest:].tolist()
    with open(out_file, "w") as file:
        json.dump(answers, file)


if __name__ == "__main__":
    main(*sys.argv[1:])

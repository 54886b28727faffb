"""A few rows laid out as the paper's repository has them."""

import json
from pathlib import Path

from data.split import MATH_SETS


# ---------------------------------------------------------------- the paper's data
def write_paper_folder(folder: Path, count: int = 10) -> Path:
    for name, file in MATH_SETS.items():
        path = folder / "dataset" / file
        path.parent.mkdir(parents=True)
        rows = [
            {
                "question": f"{name} {i}?",
                "chain-of-thought": f"\nA: {i}.",
                "pred": i,
                "answer": float(i),
            }
            for i in range(count)
        ]
        path.write_text(json.dumps(rows))
        if name == "AddSub":
            path.with_name("AddSub.json").write_text(
                json.dumps([{"lSolutions": [f"{i}.00"]} for i in range(count)])
            )
    return folder

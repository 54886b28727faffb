"""Records in the form of Zero-shot-CoT's logs."""

RULE = 25 * "*"
NUMERALS, LETTERS = (
    "Therefore, the answer (arabic numerals) is",
    "Therefore, among A through E, the answer is",
)
THINK = "Let's think step by step."
HEAD = f"""{29 * "*"}
Namespace(cot_trigger="{THINK}", cot_trigger_no=1, dataset='ours', \
direct_answer_trigger='\\n{NUMERALS}', method='zero_shot_cot')
{29 * "*"}
setup data loader ...
dataset : ours
"""


def sample(question: str, answer: str, predicted: str, number: int = 1) -> str:
    return (
        f"{number}_th_sampling\nQ: {question}\nA: {answer}\npred_before : "
        f"{answer[-9:]}\npred_after : {predicted}\n"
    )


def record(samples: str, gold: str, number: int = 1) -> str:
    return (
        f"{RULE}\n{number}st data\n{samples}pred_list : ['1']\npred_mode : 1\nGT : {gold}\n{RULE}\n"
    )


def one(question: str, rationale: str, predicted: str, gold: str, trigger: str = NUMERALS) -> str:
    return record(sample(question, f"{THINK} {rationale}\n{trigger} {predicted}.", predicted), gold)

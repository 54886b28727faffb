"""The strict reader on texts of many kinds, case by case."""

import pytest

from data.answer_kinds import kind_of_answers
from data.numerals import label_number
from eval.answers import is_right, reaches, read_answer

NUMBERS = [  # text, the number it gives
    ("#### 18\n\nQuestion: Tom has 5 pens and buys 3. How many?\n5 + 3 = 8\n#### 8", 18),
    ("#### 18\n\nTom has 5 pens and buys 3. How many pens are there?\n#### 8", 18),
    ("9 * 2 = 18\n#### 18\n#### 25\n#### 7", 18), ("#### 18 Question: 4 + 4?\nAnswer: 8", 18),
    ("#### 18Question: 4 + 4?\n#### 8", 18), ("#### $1,250.50\n\nQ: next?\nA: 3", 1250.5),
    ("#### 18 eggs\n\nLet me know if you have 2 more questions.", 18),
    ("The answer is 18.\n\nQuestion: What is 3 + 4?\nAnswer: The answer is 7.", 18),
    ("The answer is 18.\n\nProblem 2: 3 + 4?\nThe answer is 7.", 18),
    ("The answer is 18.\nQ: 3 + 4?\nA: The answer is 7.", 18),
    ("The answer is 18.\n\nAnna has 3 cats. She gets 4. How many cats does she have?\nThe "
     "answer is 7.", 18),
    ("The answer is 18.\n\nUser: and 3 + 4?\nAssistant: The answer is 7.", 18),
    ("The answer is 18.<|im_end|>\n<|im_start|>user\n3 + 4? The answer is 7", 18),
    ("The answer is 18.</s>The answer is 7.", 18), ("The answer is 3, since 3 * 4 = 12.", 3),
    ("The answer is 3 because 12 / 4 = 3 and 3 * 5 = 15.", 3), ("The answer is 3 (3 * 4 = 12).", 3),
    ("The answer is 3; 3 * 4 = 12.", 3), ("The answer is 3: 3 * 4 = 12.", 3),
    ("The answer is 3 - check: 3 * 4 = 12.", 3), ("The answer is 3 — indeed 3 * 4 = 12.", 3),
    ("The answer is 3 as 3 * 4 = 12.", 3), ("The answer is 12 eggs left over from 3 * 5 = 15.", 12),
    ("The answer is 3.\nCheck: 3 * 4 = 12.", 3),
    ("The answer is 3. Check: 3 * 4 = 12, so 12 / 4 = 3. Done in 2 steps.", 3),
    ("The answer is 5.\n\nI hope this answer is clear. It took 3 steps.", 5),
    ("The answer is 5. What would the answer be if she had 20?", 5),
    ("<answer>18</answer> I checked it 3 times.", 18),
    ("<think>The answer is 4? No, 5.</think><answer>18</answer> 3 checks", 18),
    ("<think>Let me see. The answer is 4.</think>\n\n18", 18),
    ("<answer>\n18\n</answer>\nConfidence: 95%", 18), ("<ANSWER>18</ANSWER> 3", 18),
    ("18\nI checked it 3 times.", 18), ("18, since 3 * 6 = 18 and 4 * 5 = 20.", 18),
    ("18 (I counted 3 times)", 18), ("18. I checked it 3 times.", 18),
    ("1. Tom has 3 pens.\n2. He buys 4, so 7.", 7), ("3 + 4 = 7.\nCheck: 7 - 4 = 3.", 7),
    ("3 + 4 = 7. Verification: 7 - 3 = 4", 7), ("\\boxed{18}. I used 3 steps.", 18),
    ("**Answer:** 18\n\n**Explanation:** 3 * 6 = 18 and 2 more.", 18),
    ("*Answer*: 18 (3 steps)", 18), ('{"answer": 18, "steps": 3}', 18),
    ("Final answer: 18 in 3 steps", 18), ("The answer is 5 * 3, or 15.", 15),
    ("The answer is 6 + 7 + 2, which is 15.", 15), ("The answer is 12 divided by 4 = 3.", 3),
    ("The answer is 12 divided by 4, which is 3.", 3), ("The answer is $49 - $34 = $15.", 15),
    ("The answer is 49 apples - 34 apples = 15 apples, since 60 = 4 * 15.", 15),
    ("The answer is sqrt(16) = 4.", 4), ("The answer is 60 cm = 100 cm - 40 cm.", 60),
    ("The answer is 2(3 + 4) = 14.", 14), ("The answer is two, because 3 * 4 = 12.", 2),
    ("The answer is negative 5.", -5), ("The answer is minus 5.", -5),
    ("The answer is negative twelve.", -12),
    ("Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nIn all 48+24 = "
     "<<48+24=72>>72.\n#### 72", 72),
    ("#### 1,00,000", 100_000), ("The answer is 12,34,567.", 1_234_567),
    ("The answer is Rs. 1,00,000.", 100_000), ("The answer is ₹2,50,000.75.", 250000.75),
    ("The answer is 2 lakh.", 200_000), ("The answer is 1.5 crore.", 15000000.0),
    ("The answer is 1’234’567.80.", 1234567.8), ("The answer is CHF 1'000.", 1000),
    ("The answer is 1.234,5.", 1234.5), ("The answer is 1.234.567.", 1_234_567),
    ("The answer is 1,5.", 1.5), ("The answer is 0,125.", 0.125),
    ("Es sind 1 234,56 Euro.", 1234.56), ("The answer is €2,5 Mio.", 2500000.0),
    ("The answer is 3,14159.", 3.14159), ("The answer is 1.234.", 1.234),
    ("The answer is 1,234.", 1234), ("The answer is 12,5%.", 12.5), ("The point is (3,4)", 3),
    ("The answer is $2.5 m.", 2500000.0), ("The answer is $3bn.", 3000000000.0),
    ("The answer is $1.2 billion dollars.", 1200000000.0), ("The answer is $750K.", 750_000),
    ("The answer is 7B.", 7000000000.0), ("The answer is 4.2M€.", 4200000.0),
    ("The answer is £3m", 3000000.0), ("The answer is 5 m.", 5), ("The answer is 300 K.", 300),
    ("The answer is USD 2.5M.", 2500000.0), ("The answer is 2.5M USD.", 2500000.0),
    ("The answer is $4T.", 4000000000000.0), ("The answer is 10^17.", 1e+17),
    ("The answer is 2 x 10^17.", 2e+17), ("The answer is 10 to the power of 17.", 1e+17),
    ("The answer is 10 to the 6th.", 1000000.0), ("The answer is 10**12.", 1000000000000.0),
    ("The answer is $2 \\times 10^{5}$.", 200000.0), ("The answer is 100000000000000000.", 1e+17),
    ("The answer is 2^70.", 1.1805916207174113e+21), ("The answer is 1_000_000.", 1000000.0),
    ("The answer is 5 and a half.", 5.5), ("The answer is 1\u202f234,5.", 1234.5),
    ("The answer is １８.", 18), ("The answer is 3 or 4.", 3), ("I get 18 in the end, not 20.", 18),
    ("The total cost is $25.", 25),
    ("Answer: Tom has 5 pens. He buys 3 more.\n5 + 3 = 8\n#### 8", 8),
    ("The answer is 7.\nWait, how many did he give away? 3. So the answer is 4.", 4),
    ("She has $5.", 5), ("x = 3, y = 4", 4),
    ("Therefore she has 5 left.\n\nLet me verify: 5 + 3 = 8.", 5), ("She needs 18 (3 x 6).", 18),
    ("It is 18 as 3 x 6 = 18 and 20 is too many.", 18), ("Answer\n18\n\nSteps: 3", 18),
    ("## Answer\n\n18\n\n## Check\n\n3 * 6", 18), ("The answer is one hundred quadrillion.", 1e17),
    ("Since 3 * 4 = 12, she has 12 pens.", 12), ("Then 20 is left because 10 - 5", 20),
]  # fmt: skip
A_D, A_J, SMALL, MIXED = "A B C D", "A B C D E F G H I J", "a b c d", "A B C D 1 2 3 4"
LETTERS = [  # labels of the data, text, the label it chooses
    (A_D, "d", "D"), (A_D, "d.", "D"), (A_D, "b. 4", "B"), (A_D, "(b)", "B"), (A_D, "[B]", "B"),
    (A_D, "[b]", "B"), (A_D, "Correct: C", "C"), (A_D, "correct: c", "C"),
    (A_D, "<answer>B</answer>", "B"), (A_D, "<answer> (b) </answer>", "B"), (A_D, "**B**", "B"),
    (A_D, "**B.** 4", "B"), (A_D, "\\boxed{B}", "B"), (A_D, "\\boxed{\\textbf{(B)}}", "B"),
    (A_D, "$\\boxed{\\text{b}}$", "B"), (A_D, "$B$", "B"), (A_D, "`b`", "B"), (A_D, "__C__", "C"),
    (A_D, "*C*", "C"), (A_D, "ANSWER: b", "B"), (A_D, "Ans: c", "C"),
    (A_D, "The answer is b because a is too small.", "B"), (A_D, "The answer is b) 4", "B"),
    (A_D, "I'd go with C.", "C"), (A_D, "I think it's B.", "B"),
    (A_D, "So the answer must be d", "D"), (A_D, "My choice: D", "D"),
    (A_D, "Option d is right.", "D"), (A_D, "option (a)", "A"), (A_D, "The best one is C.", "C"),
    (A_D, "The correct letter is D.", "D"), (A_D, "A bird in the hand.", None),
    (A_D, "The answer is a bird.", None), (A_D, "The answer is A Tale of Two Cities.", None),
    (A_D, "A", "A"), (A_D, "a", "A"), (A_D, "a) 5", "A"), (A_D, "A. A bird", "A"),
    (A_D, "The answer is vitamin C.", None), (A_D, "37 C", None), (A_D, "It is 37 C, so B.", "B"),
    (A_D, "B. A is wrong since 3 < 4.", "B"), (A_D, "(B) 4. Option A is wrong.", "B"),
    (A_D, "The answer is B. The other options, A and C, are wrong.", "B"),
    (A_D, "C, because A and B are too small.", "C"), (A_D, "A and B are wrong, so C.", "C"),
    (A_D, "(A) is wrong. (B) is wrong. (C) is right.", "C"),
    (A_D, "A) 4\nB) 5\nC) 6\nD) 7\n\nThe answer is c", "C"), (A_D, "A) 4\nB) 5\nC) 6\nD) 7", None),
    (A_D, "a) 4 b) 5 c) 6 d) 7\nSo d.", "D"),
    (A_D, "The correct answer is (A) 5. (B) is too small. (C) is too big.", "A"),
    (A_D, "The answer is B.\n\nQuestion: Which is red?\nAnswer: D", "B"),
    (A_D, "#### B\n\nWhich is red?\n#### D", "B"),
    (A_D, "<think>It could be A. The answer is A?</think>C", "C"),
    (A_D, "The answer is C.<|eot_id|>The answer is D", "C"), (A_D, '{"answer": "c"}', "C"),
    (A_D, "The answer is option [D].", "D"), (A_D, "【B】", "B"), (A_D, "（B）", "B"),
    (A_D, "Answer：B", "B"), (A_J, "F. A bird in the hand", "F"),
    (A_J, "I think the answer is G.", "G"), (A_J, "I think so.", None), (A_J, "I. A cat", "I"),
    (A_J, "The answer is I.", "I"), (A_J, "The answer is (J).", "J"), (A_J, "h", "H"),
    (A_J, "I have no idea.", None), (A_J, "I", "I"), (A_J, "\\boxed{J}", "J"),
    (A_J, "The answer is I because A is wrong.", "I"), (A_J, "A person would pick H.", "H"),
    (A_J, "I choose (I).", "I"), (A_J, "Answer: I think B", "B"),
    (A_J, "The correct option is g, a gas.", "G"), (SMALL, "b) A car is faster.", "b"),
    (SMALL, "b. a car", "b"), (SMALL, "A car", None), (SMALL, "a car", None),
    (SMALL, "The answer is A.", "a"), (SMALL, "(d) none", "d"), (SMALL, "D", "d"),
    (SMALL, "option a", "a"), (SMALL, "It takes a while, so c.", "c"), (SMALL, "c: 45", "c"),
    (SMALL, "I need a car and a bus. c", None), (SMALL, "The answer is: a", "a"),
    (SMALL, "a\n\nBecause a car is fast.", "a"), (SMALL, "a is correct", "a"),
    (SMALL, "it must be (b).", "b"), (MIXED, "3", "3"), (MIXED, "(3) gravity", "3"),
    (MIXED, "3. gravity", "3"), (MIXED, "The answer is 3.", "3"), (MIXED, "The answer is B.", "B"),
    (MIXED, "Option 2", "2"), (MIXED, "B. It has 4 legs", "B"),
    (MIXED, "It has 4 legs. The answer is (2).", "2"), (MIXED, "4) it has 3 legs", "4"),
    (MIXED, "The answer is 3 because 1 and 2 are wrong.", "3"), (MIXED, "It has 3 legs", None),
    (MIXED, "\\boxed{4}", "4"), (MIXED, "d", "D"), ("E F G H", "The answer is g", "G"),
    ("A B C", "c", "C"), ("F G", "F", "F"), ("(A) (B) (C)", "The answer is B.", "(B)"),
    ("A. B. C.", "b", "B."), ("T F", "T", "T"), ("Y N", "n", "N"),
    ("a b c d e f g h i j", "The answer is i.", "i"),
    ("a b c d e f g h i j", "i think it is e", "e"), ("a b c d e f g h i j", "j) a cat", "j"),
    (A_D, "The answer is neither A nor B but C.", "C"), (A_D, "All of the above (D)", "D"),
    (A_D, "D - all of the above", "D"), (A_D, "A or B? I'd say B.", "B"), (A_D, "Selected: B", "B"),
    (A_D, "B:45", "B"), (A_D, "B)45", "B"), (A_D, "(B)45", "B"),
    (A_D, "The answer is:\n\n**C) Paris**", "C"), (A_D, "The answer is **(C)**: Paris", "C"),
    (A_D, "The answer is ‘c’", "C"), (A_D, "the answer is c ✅", "C"),
    (A_D, "B\n\nI hope this helps! A is a close second.", "B"),
    (A_J, "F\n\nI hope this helps!", "F"), (A_J, "The answer is (F).", "F"),
    (A_J, "Answer: J", "J"), (A_J, "I believe the answer is I.", "I"), (A_J, "A", "A"),
    (A_J, "A man is in a car, so it is D.", "D"), (A_J, "**G**. A bird", "G"),
    (A_J, "g) I think", "G"), (A_J, "[H]", "H"), (A_J, "<answer>i</answer>", "I"), (A_J, "i", "I"),
    (A_J, "The answer is i) a bird", "I"), (SMALL, "<answer>B</answer> because a car", "b"),
    (SMALL, "[c]", "c"), (SMALL, "Correct: d", "d"), (SMALL, "**a**", "a"),
    (SMALL, "\\boxed{c}", "c"), (SMALL, "The answer is (a), as a car is fast.", "a"),
    (SMALL, "Answer: a car is fast, so b", "b"), (SMALL, "I would buy a car.", None),
    (MIXED, "The answer is A. It has 4 legs and 3 arms.", "A"),
    (MIXED, "2\n\nBecause 3 is too large", "2"), (MIXED, "[3]", "3"), (MIXED, "**2**", "2"),
    (MIXED, "Correct: 1", "1"), (MIXED, "<answer>4</answer>", "4"),
    (MIXED, "1. First we see 3 legs.\n2. So the answer is C.", "C"),
    (A_D, "Answer: B\nExplanation: A is wrong because of C.", "B"),
    (A_D, "The correct answer is option B: 4, not option C.", "B"),
    (A_D, "Let's look at A: too big. B: fits. The answer: B", "B"),
    (A_D, "Between B and C, I choose C.", "C"), (A_D, "Answer is C, D is wrong", "C"),
    (A_D, "It can't be A. It can't be B. The right choice is D.", "D"),
    (A_D, "B is the correct answer. A, C and D are wrong.", "B"),
    (A_D, "(a) is wrong, (b) is right", "B"), (A_D, "The answer is B or C", "B"),
    (A_D, "I'm going with B", "B"), (A_D, "Therefore, the correct choice is B) 4.", "B"),
    (A_D, "Thus B.", "B"), (A_D, "Hence, option C", "C"), (A_D, "D) None of these", "D"),
    (A_D, "d)", "D"), (A_D, "b:", "B"), (A_D, "Option: b", "B"), (A_D, "Ⓑ", None),
    (A_D, "The answer is B\n\nQuestion: next?\nThe answer is D", "B"), (A_D, "C\nC\nC", "C"),
    (A_D, "The answer is not A. It is B.", "B"),
    (SMALL, "I would choose a car.", None), (A_J, "Answer a question first.", None),
    (A_J, "I choose I think.", None), (SMALL, "I choose a.", "a"),
]  # fmt: skip
WORDS = [  # labels of the data, text, the label it gives
    ("flu flu-b", "flu-b", "flu-b"), ("flu flu-b", "The answer is flu.", "flu"),
    ("flu flu-b", "It is flu b.", "flu-b"), ("flu flu-b", "flu-like illness", None),
    ("flu flu-b", "flu because of fever", "flu"), ("flu cold", "non-flu", None),
    ("positive negative", "It is not positive but negative.", "negative"),
    ("positive negative", "Positive. Nothing negative is said.", "positive"),
    ("yes no", "Yes, there is no doubt.", "yes"), ("yes no", "There is no doubt: yes.", "yes"),
    ("yes no", "No, yes would be wrong.", "no"), ("yes no", "No doubt, yes.", "yes"),
    ("yes no", "The answer is no.", "no"),
    ("yes no", "The answer is no because they say yes.", "no"), ("yes no", "no", "no"),
    ("yes no", "NO!", "no"), ("yes no", "No they can not.", "no"),
    ("yes no", "Let me think. Yes, since no other fits.", "yes"), ("yes no", "So yes.", "yes"),
    ("yes no", "**Yes**", "yes"), ("yes no", "<answer>No</answer> yes?", "no"),
    ("yes no", "The answer is yes.\n\nQuestion: Is it red?\nAnswer: no", "yes"),
    ("yes no", "#### yes\nIs it red?\n#### no", "yes"),
    ("yes no", "The answer is no doubt yes.", "yes"), ("yes no", "I know nothing", None),
    ("true false", "False, as it would be true only if pigs fly.", "false"),
    ("true false", "The statement is true.", "true"),
    ("true false", "True\n\nIt is false that it is not.", "true"),
    ("café thé", "cafe\u0301", "café"), ("cafe\u0301 the\u0301", "Le café.", "cafe\u0301"),
    ("हाँ नहीं", "उत्तर: हाँ", "हाँ"), ("ja nein", "Nein, das ist kein Ja.", "nein"),
    ("level-1 level-2", "Level 2", "level-2"),
    ("north_america asia", "North America", "north_america"),
    ("entailment neutral contradiction", "This is neutral, no contradiction is there.", "neutral"),
    ("a1 a10", "a10", "a10"), ("cat category", "The answer is category.", "category"),
    ("Yes No Maybe", "Maybe. Yes and no.", "maybe"), ("over overt", "overt", "overt"),
    ("0 many", "The answer is 0.", "0"), ("0 many", "0.5", None),
]  # fmt: skip
COLUMNS = [  # labels of a column, text, gold label, whether it is right
    ("1,5 2,75 1.234", "The answer is 1.234.", "1.234", True),
    ("1,5 2,75 1.234", "Es sind 1234 Euro.", "1.234", True),
    ("1,5 2,75 1.234", "1,234", "1.234", False),
    ("1,5 2,75", "Es sind 2,75 kg.", "2,75", True),
    ("1,5 2,75", "Es sind 2.75 kg.", "2,75", True),
    ("1.5 12,345", "12345", "12,345", True),
    ("1.5 12,345", "12,345", "12,345", True),
    ("1.5 12,345", "12.345", "12,345", False),
    ("1.234,5 7", "The answer is 7.000.", "7", False),
    ("1.234,5 7", "The answer is 7.000.", "7000", True),
    ("$5 $7", "The answer is $5.00.", "$5", True),
    ("15% 20%", "The answer is 15 percent.", "15%", True),
    ("1/2 3", "The answer is 0.5.", "1/2", True),
    ("1/2 3", "The answer is half of 1, 1/2.", "1/2", False),
    ("1'000 7", "1000 in all", "1'000", True),
    ("1,00,000 7", "100,000", "1,00,000", True),
    ("$2.5M $3", "2,500,000 dollars", "$2.5M", True),
    ("10^17 3", "100,000,000,000,000,000", "10^17", True),
]
LABEL_NUMBERS = {
    "1/2": 0.5, "$5": 5, "15%": 15, "5 €": 5, "½": 0.5, "2 1/2": 2.5, "five": 5, "twenty-five": 25,
    "10 cm^2": 10, "1,5": 1.5, "+5": 5, "~5": 5, "1.5e-3": 0.0015, r"$\frac{1}{2}$": 0.5, "5.": 5,
    r"\boxed{7}": 7, ".5": 0.5, "-.5": -0.5,
    "$1,234.50": 1234.5, "50 cents": 50, "1'000": 1000, "-$20": -20, "$2.5M": 2_500_000,
    "N/A": None, "nan": None, "inf": None, "": None, "1,2,3": None, "3:4": None, "5-6": None,
    "12 apples and pears": None, "9" * 400: None, "3/0": None,
}  # fmt: skip
KINDS = [
    (["1", "2.5", "1/2", "$5", "15%", "five"], "number"),
    (["5 km", "12 km"], "number"), (["5 apples", "3 pears"], "text"),
    (["5 km", "3", "4"], "number"),
    (["3"] * 11 + ["N/A"], "number"), (["3"] * 5 + ["N/A"] * 5, "text"),
    (["1,5", "2,25", "1.234"], "number:comma"), (["1,234", "2,345"], "number"),
    (list("ABCD"), "letters:A|B|C|D"), (list("abc"), "letters:a|b|c"), (list("ABCDE"), "letter"),
    (list("AEC"), "letter"), (list("AH"), "letters:A|B|C|D|E|F|G|H"), (["A"], "letter"),
    (list("ADH") * 50, "letters:A|D|H"), (list("YN"), "letters:N|Y"), (list("bAB"), "letters:A|B"),
    (list("ABCD1234"), "letters:A|B|C|D|1|2|3|4"), (["(A)", "(B)"], "letters:(A)|(B)"),
    (list("ABCD") * 5 + ["none"], "letters:A|B|C|D"), (list("1234"), "number"),
    (list("12345") * 9 + ["A"], "number"), (["yes", "no"] * 10 + ["not sure"], "labels:no|yes"),
    (["cafe\u0301", "the\u0301"], "labels:café|thé"), (["हाँ", "नहीं"], "labels:नहीं|हाँ"),
    (["flu", "flu-b"], "labels:flu|flu-b"), ([f"w{i}" for i in range(30)], "text"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_numbers(text, number):
    assert read_answer(text, "number") == pytest.approx(number, rel=1e-12)


@pytest.mark.parametrize(("labels", "text", "expected"), LETTERS)
def test_letters_of_own_data(labels, text, expected):
    assert read_answer(text, kind_of_answers(labels.split())) == expected


@pytest.mark.parametrize(("labels", "text", "expected"), WORDS)
def test_words(labels, text, expected):
    found = read_answer(text, kind_of_answers(labels.split() * 3))
    assert found is None if expected is None else is_right(found, expected)


@pytest.mark.parametrize(("labels", "text", "gold", "right"), COLUMNS)
def test_a_column_decides_how_its_numbers_are_written(labels, text, gold, right):
    assert is_right(read_answer(text, kind_of_answers(labels.split())), gold) is right


@pytest.mark.parametrize(("label", "number"), LABEL_NUMBERS.items())
def test_labels_as_numbers(label, number):
    found = label_number(label)
    assert found is None if number is None else found[0] == pytest.approx(number)


@pytest.mark.parametrize(("labels", "kind"), KINDS)
def test_kinds(labels, kind):
    assert kind_of_answers(labels) == kind


def test_composed_and_decomposed_letters_are_equal():
    assert is_right("cafe\u0301", "CAF\u00c9")
    assert is_right(read_answer("The answer is Cafe\u0301 noir.", "text"), "caf\u00e9 noir")
    assert not is_right("cafe", "caf\u00e9")


@pytest.mark.parametrize(("rationale", "gold", "there"), [
    ("It is F. The answer is F.", "F", True), ("The answer is c.", "c", True),
    ("The answer is c.", "d", False), ("The answer is 1/2.", "1/2", True),
    ("2 halves", "1/2", False),
    ("Half: 0.5", "1/2", True), ("The answer is $5.", "$5", True),
])  # fmt: skip
def test_a_rationale_reaches_a_label_of_any_form(rationale, gold, there):
    assert reaches(rationale, gold) is there


def test_the_reader_of_the_paper_knows_the_new_kinds_in_its_own_way():
    text = "An answer is d, Because E is out: G"
    assert read_answer(text, "letters:A|B|C|D", "paper") == "A"
    assert read_answer(text, "letters:F|G", "paper") == "G"
    assert read_answer("1,5", "number:comma", "paper") == 15


MARKS = [  # text, the number it gives: LaTeX's signs beside a number
    (r"\boxed{7\times10^4}", 70_000), (r"The answer is 6\times10^{-1}.", 0.6),
    (r"The answer is 14\times3=42 in 5 rows.", 42), (r"#### 5\cdot10^3", 5000),
    (r"The answer is 4\cdot 2 = 8 cm.", 8), (r"\boxed{60^\circ} by step 4", 60),
    (r"\boxed{45^{\circ}} by step 4", 45), (r"\boxed{12.5^{\circ}\mathrm{C}} at 3 pm", 12.5),
    (r"\boxed{20^\circ C}", 20), (r"The answer is $75^\circ$.", 75), (r"\boxed{30 ^ {\circ}}", 30),
    (r"The answer is 15^\degree.", 15), (r"The answer is 80^{o}.", 80),
    ("80^\\circ\n35^\\circ", 35), (r"The answer is 8^{th}.", 8),
    (r"\boxed{31^\text{st}} of 40", 31),
    (r"\boxed{2^{\text{nd}}} of 9", 2), (r"The answer is 3^{\rm rd} of 7.", 3),
    (r"The answer is 2^3.", 8), (r"\boxed{2^{10}}", 1024),
]  # fmt: skip


@pytest.mark.parametrize(("text", "number"), MARKS)
def test_signs_of_latex_beside_a_number(text, number):
    assert read_answer(text, "number") == pytest.approx(number)


@pytest.mark.parametrize(("text", "letter"), [
    ("Answer: $C", "C"), ("Answer: $D\n", "D"), ("The answer is $B.", "B"), ("Answer: $A$", "A"),
    ("Answer: $LETTER", None), ("Answer: $Dog", None),
])  # fmt: skip
def test_a_letter_behind_a_dollar_sign(text, letter):
    assert read_answer(text, "letters:A|B|C|D") == letter


@pytest.mark.parametrize("kind", ["number", "letters:A|B|C|D", "labels:yes|no", "text"])
def test_a_thought_that_does_not_end_gives_no_answer(kind):
    answer = {"number": "6", "letters:A|B|C|D": "B", "labels:yes|no": "yes", "text": "blue"}[kind]
    says = f"The answer is {answer}."
    assert read_answer(f"<think>\nFirst, 2. {says} Wait", kind) is None
    assert read_answer(f"<think> Hm. </think><think>{says} Wait", kind) is None
    assert is_right(read_answer(f"<think> Hm, 4 or C. </think> {says}", kind), answer)
    assert is_right(read_answer(f"{says}\n<think>Or no, 9, C", kind), answer)


def test_the_papers_reader_looks_for_a_to_e_in_own_data_too():
    """Its code knew no fewer options; own data with A to D was read so before, and is."""
    assert kind_of_answers("ABCD") == "letters:A|B|C|D"
    assert read_answer("Every answer", "letters:A|B|C|D", "paper") == "E"
    assert read_answer("Fine: F", "letters:A|F", "paper") == "F"

"""Means of the sets in and out of the training data's distribution, and sets that leak."""

from eval.score import Score, means, score_table


def test_means_in_and_out_of_the_distribution_of_the_training_data():
    """math_10k has the training parts of three sets, and problems of MultiArith themselves."""
    right = {"gsm8k": 1, "AQuA": 2, "mawps": 3, "SVAMP": 4, "MultiArith": 5}
    found = [
        {"set": name, "index": n, "right": n < count, "paper_right": n < 1}
        for name, count in right.items()
        for n in range(10)
    ]

    def rows(data: str) -> dict[str, str]:
        table = score_table(found, found, "with adapter", data=data).rows
        assert all(str(row[1]) == str(row[2]) for row in table)
        return {row[0].text: row[2].text for row in table}

    expected = {"gsm8k": "10.0%", "AQuA": "20.0%", "mawps": "30.0%", "SVAMP": "40.0%"}
    known = expected | {"MultiArith (leaks)": "50.0%", "average": "30.0%"}
    known |= {"in distribution": "20.0%", "out of distribution": "40.0%"}
    assert rows("math_10k") == known
    plain = expected | {"MultiArith": "50.0%", "average": "30.0%"}
    assert rows("math_7k") == plain | {"in distribution": "15.0%", "out of distribution": "40.0%"}
    assert rows("math_50k") == rows("my.jsonl") == rows("") == plain  # nobody says what is in it
    assert list(means({"boolq": Score(1, 2), "piqa": Score(1, 2)}, "commonsense_170k")) == [
        "average"
    ]

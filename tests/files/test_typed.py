"""Tables of files as typed values (files/typed.py)."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from files.errors import UserError
from files.typed import Range, from_table, typed, typed_values


@dataclass(frozen=True)
class Inner:
    width: Annotated[int, Range(1, 10)] = 4

    def check(self) -> None:
        if self.width == 3:
            raise UserError("width = 3 is odd and not 1")


@dataclass(frozen=True)
class Table:
    name: str
    size: int | list[int] = 8
    rate: float = 0.5
    on: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    sites: tuple[str, ...] = ()
    act: Literal["tanh", "relu"] = "tanh"
    layers: dict[str, int] = field(default_factory=dict)
    length: int | None = None
    inner: Inner = field(default_factory=Inner)


def test_values_get_the_types_of_the_annotations():
    table = {
        "name": "a", "size": [1, 2], "rate": 1, "on": True, "betas": [0, 1], "sites": ["q"],
        "act": "relu", "layers": {"q": 3}, "length": None, "inner": {"width": 5},
    }  # fmt: skip
    made = from_table(Table, table, "run.toml")
    expected = Table("a", [1, 2], 1.0, True, (0.0, 1.0), ("q",), "relu", {"q": 3}, None, Inner(5))
    assert made == expected
    assert type(made.rate) is float
    assert type(made.betas[0]) is float


def test_defaults_stay_and_are_left_out_of_values():
    assert from_table(Table, {"name": "a"}, "run.toml") == Table("a")
    assert typed_values(Table, {"rate": 2}, "run.toml") == {"rate": 2.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": "8"}, "run.toml: size = '8' should be a whole number or a list of whole numbers"),
        ({"size": True}, "size = True should be a whole number"),
        ({"size": 1.0}, "size = 1.0 should be a whole number"),
        ({"size": [1, True]}, r"size = \[1, True\] should be a whole number or a list of whole"),
        ({"size": 2**63}, "size = 9223372036854775808 should be a whole number"),
        ({"rate": float("nan")}, "rate = nan should be a number"),
        ({"rate": float("inf")}, "rate = inf should be a number"),
        ({"rate": 10**400}, "rate = 1000"),
        ({"rate": False}, "rate = False should be a number"),
        ({"on": 1}, "on = 1 should be true or false"),
        ({"betas": [0.9]}, r"betas = \[0.9\] should be a list of 2 numbers"),
        ({"betas": 0.9}, "betas = 0.9 should be a list of 2 numbers"),
        ({"sites": "q"}, "sites = 'q' should be a list of texts"),
        ({"sites": ["q", 1]}, "should be a list of texts"),
        ({"act": "gelu"}, "act = 'gelu' should be tanh or relu"),
        ({"layers": {"q": "x"}}, "layers = {'q': 'x'} should be a table of whole numbers"),
        ({"length": "x"}, "length = 'x' should be a whole number or null"),
        ({"inner": 3}, r"run.toml \[inner\] should be a table, not 3"),
        ({"inner": {"width": 0}}, r"run.toml \[inner\]: width = 0 should be a whole number from 1"),
        ({"inner": {"width": 11}}, "from 1 up to 10"),
        ({"inner": {"width": 3}}, "width = 3 is odd"),
        ({"inner": {"widht": 3}}, r"run.toml \[inner\]: unknown setting 'widht'; did you mean 'wi"),
        ({"ratte": 1}, "run.toml: unknown setting 'ratte'; did you mean 'rate'"),
    ],
)
def test_a_wrong_value_is_named_with_its_file_and_what_it_should_be(change, message):
    with pytest.raises(UserError, match=message):
        from_table(Table, {"name": "a", **change}, "run.toml")


def test_a_missing_field_without_a_default_is_named():
    with pytest.raises(UserError, match=r"run.toml: setting name is missing"):
        from_table(Table, {}, "run.toml")


def test_a_long_value_is_cut():
    with pytest.raises(UserError) as error:
        from_table(Table, {"name": "a", "rate": "x" * 10_000}, "run.toml")
    assert len(str(error.value)) < 200


def test_other_keys_may_be_suggested():
    with pytest.raises(UserError, match="unknown option 'presett'; did you mean 'preset'"):
        typed_values(Inner, {"presett": 1}, "adapter", "option", others=["preset"])


@pytest.mark.parametrize(
    ("value", "kind", "result"),
    [
        (3, int | float, 3),
        (3, float | str, 3.0),
        ("learned", float | str, "learned"),
        ((1, 2), list[int], [1, 2]),
        ([1, "a"], list, [1, "a"]),
        ([1], tuple, (1,)),
        ({"a": 1}, dict, {"a": 1}),
        (object, Any, object),
        (0.5, Annotated[float, Range(0, 1, open=True)], 0.5),
        ([1, 2], Annotated[int | list[int], Range(1)], [1, 2]),
    ],
)
def test_single_values(value, kind, result):
    read = typed(value, kind, "f", "key")
    assert read == result
    assert type(read) is type(result)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (0.0, Annotated[float, Range(0, 1, open=True)], "a number above 0 up to 1"),
        ([1, 0], Annotated[int | list[int], Range(1)], "a list of whole numbers from 1"),
        (1, Literal[True, False], "true or false"),
        ("a", list[str], "a list of texts"),
    ],
)
def test_single_values_that_do_not_fit(value, kind, message):
    with pytest.raises(UserError, match=message):
        typed(value, kind, "f", "key")

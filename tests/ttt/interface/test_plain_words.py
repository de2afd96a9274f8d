"""What people are told of a value that cannot be used: never pydantic's own words."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from refine_server.ttt.interface.plain_words import problems


class Body(BaseModel):
    number: int = 0
    share: float = Field(0.5, gt=0.0, le=1.0, allow_inf_nan=False)
    word: str = Field("a", min_length=1, max_length=3)
    kind: Literal["a", "b"] = "a"
    flags: Annotated[list[bool], Field(max_length=1)] = []
    inner: dict[str, int] = {}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"number": "x"}, "number: must be an integer"),
        ({"share": "x"}, "share: must be a number"),
        ({"share": 0}, "share: must be greater than 0.0"),
        ({"share": 2}, "share: must be at most 1.0"),
        ({"share": float("nan")}, "share: must be a finite number"),
        ({"word": ""}, "word: must have at least 1 character"),
        ({"word": "long"}, "word: must have at most 3 characters"),
        ({"word": 1}, "word: must be a string"),
        ({"kind": "c"}, "kind: must be 'a' or 'b'"),
        ({"flags": [True, True]}, "flags: must have at most 1 element"),
        ({"flags": ["perhaps"]}, "flags.0: must be true or false"),
        ({"flags": 1}, "flags: must be a list"),
        ({"inner": 1, "number": []}, "number: must be an integer; inner: must be an object"),
    ],
)
def test_a_value_is_refused_in_plain_words(values: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Body.model_validate(values)
    assert problems(caught.value) == told

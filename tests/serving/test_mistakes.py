"""What a refused request is told: the words of JSON, never those of Python."""

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, field_validator

from serving.mistakes import checked_part
from serving.queries import QueryError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: StrictStr = ""


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: StrictStr | None = Field(None, min_length=2, max_length=5)
    k: StrictInt = Field(10, ge=1, le=20)
    share: float = Field(0.5, gt=0, lt=1, allow_inf_nan=False)
    explain: StrictBool = False
    mode: Literal["dense", "bm25"] = "dense"
    filters: dict[str, Any] | None = None
    ids: list[StrictStr] = Field(default_factory=list, min_length=1, max_length=2)
    parts: list[Inner] = Field(default_factory=list)
    code: StrictStr = Field("a", pattern="^[a-z]$")
    word: StrictStr = "even"

    @field_validator("word")
    @classmethod
    def _even(cls, value: str) -> str:
        if len(value) % 2:
            raise ValueError("An odd word; send an even one")
        return value


class Needy(BaseModel):
    query: StrictStr


def said(body: dict[str, Any], model: type[BaseModel] = Asked) -> str:
    with pytest.raises(QueryError) as refusal:
        checked_part(model, body)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"text": 1}, "text: must be a string, not a number"),
        ({"text": ["a"]}, "text: must be a string, not an array"),
        ({"text": "a"}, "text: is too short; at least 2 characters are needed"),
        ({"text": "abcdef"}, "text: is too long; at most 5 characters are allowed"),
        ({"k": None}, "k: must be a whole number, not null"),
        ({"k": "3"}, "k: must be a whole number, not a string"),
        ({"k": True}, "k: must be a whole number, not true"),
        ({"k": 1.5}, "k: must be a whole number, not 1.5"),
        ({"k": 0}, "k: must be at least 1"),
        ({"k": 21}, "k: must be at most 20"),
        ({"share": {}}, "share: must be a number, not an object"),
        ({"share": "x"}, "share: must be a number"),
        ({"share": 0}, "share: must be more than 0.0"),
        ({"share": 1}, "share: must be less than 1.0"),
        ({"share": float("nan")}, "share: must be a finite number"),
        ({"explain": 1}, "explain: must be true or false, not a number"),
        ({"mode": None}, 'mode: must be "dense" or "bm25"'),
        ({"filters": []}, "filters: must be an object, not an array"),
        ({"filters": False}, "filters: must be an object, not false"),
        ({"ids": "a"}, "ids: must be an array, not a string"),
        ({"ids": []}, "ids: has too few elements; at least 1 are needed"),
        ({"ids": ["a", "b", "c"]}, "ids: has too many elements; at most 2 are allowed"),
        ({"ids": [None]}, "ids.0: must be a string, not null"),
        ({"parts": ["a"]}, "parts.0: must be an object, not a string"),
        ({"parts": [{"colour": 1}]}, "parts.0.colour: unknown field; leave it out"),
        ({"code": "A"}, "code: must match ^[a-z]$"),
        ({"word": "odd"}, "word: an odd word; send an even one"),
    ],
)
def test_every_rule_is_said_in_the_words_of_json(body, message):
    assert said(body) == message


def test_a_field_that_is_not_there_and_one_that_is_too_much_are_named():
    assert said({}, Needy) == "query: is missing; send it"
    allowed = ", ".join(Asked.model_fields)
    assert said({"x": 1}) == f"x: unknown field; allowed: {allowed}"


def test_the_api_names_neither_dictionaries_nor_none(client):
    for body in (
        {"text": "a", "filters": []},
        {"text": "a", "mode": None},
        {"text": "a", "exclude": {"d01": None}},
        {"queries": None, "history": "d01"},
    ):
        message = client.post("/v1/search", json=body).json()["error"]["message"]
        assert not any(word in message for word in ("dictionary", "None", "'", "valid")), message
    assert "whole number" in client.get("/v1/bundles?limit=x").json()["error"]["message"]
    assert "true or false" in client.get("/v1/documents/d01/neighbors?with_documents=7").text

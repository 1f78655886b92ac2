from pathlib import Path

import pytest
from pydantic import BaseModel

from pipelines.config import RunConfig
from pipelines.describe import describe, models_of

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_in_docs_is_what_the_command_prints() -> None:
    assert PAGE.read_text(encoding="utf-8") == describe(RunConfig), "run `make docs`"


@pytest.mark.parametrize("model", models_of(RunConfig), ids=lambda model: model.__name__)
def test_every_key_is_described(model: type[BaseModel]) -> None:
    tags = {"kind", "format", "by"}  # say by themselves which of several they are
    bare = [name for name, field in model.model_fields.items() if not field.description and name not in tags]
    assert bare == []


def test_defaults_and_alternatives_are_written_as_in_yaml() -> None:
    page = describe(RunConfig)
    assert "| `similarity` | `cosine` or `dot` | `cosine` |" in page
    assert "| `qrels` | [Qrels](#qrels) or null | `null` |" in page
    assert "| `store` | path | required |" in page


def test_every_link_leads_to_a_section() -> None:
    page = describe(RunConfig)
    headings = {line.removeprefix("## ").lower() for line in page.splitlines() if line.startswith("## ")}
    links = {part.split(")")[0] for part in page.split("](#")[1:]}
    assert links <= headings

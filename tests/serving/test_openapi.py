"""The API does what its OpenAPI says: cases made from it get no 5xx and only replies that it describes."""

import math
from collections import Counter
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving.api import ServeConfig
from serving.keys import KeysConfig, new_key
from serving.store import Store

ADMIN, LINE = new_key("admin", "tester")
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def address(make, tmp_path_factory) -> Iterator[str]:
    """A server whose store has two champions to go back and forth between."""
    root = tmp_path_factory.mktemp("described")
    for seed in (0, 9):
        Store(root).set_champion(make.shop(root, seed=seed).path.name, "a test")
    (root / "keys").write_text(LINE)
    config = ServeConfig(poll_seconds=0.05, keys=KeysConfig(file=root / "keys"))
    with make.server(root, config) as client:
        make.wait_until(lambda: client.get("/readyz").status_code == 200)
        yield str(client.base_url)


def statuses_of(address: str, cases: int, *, derandomize: bool) -> Counter[tuple[str, int]]:
    """Make about so many cases, many against the schema, and return which statuses each route gave."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    bounded = [one for one in operations if one.body or one.query]  # any text can be an id in a path
    runs = [(one, GenerationMode.POSITIVE) for one in operations]
    runs += [(one, GenerationMode.NEGATIVE) for one in bounded]
    seen: Counter[tuple[str, int]] = Counter()
    for operation, mode in runs:

        @settings(
            max_examples=math.ceil(cases / len(runs)),
            database=None,
            deadline=None,
            derandomize=derandomize,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode))
        def check(case: Case) -> None:
            response = case.call(headers={"X-API-Key": ADMIN})
            case.validate_response(response, checks=CHECKS)
            seen[case.operation.label, response.status_code] += 1

        check()
    return seen


def test_three_hundred_cases_get_no_5xx_and_only_what_is_described(address):
    seen = statuses_of(address, 420, derandomize=True)
    assert sum(seen.values()) >= 300
    assert {status for _, status in seen} >= {200, 404, 422}
    assert seen["POST /v1/search", 422] > 0


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_ten_thousand_cases_get_no_5xx_and_only_what_is_described(address):
    seen = statuses_of(address, 14_000, derandomize=False)
    assert sum(seen.values()) >= 10_000

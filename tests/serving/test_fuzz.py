"""Requests made up from the OpenAPI document, right and wrong: never a 5xx, never a hang, answers as documented."""

from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from live_server import Live, live
from schemathesis import Case, GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from tiny_engine import tiny_engine

from nanochat.inference import AsyncEngine

load_all_checks()
CHECKS = [
    not_a_server_error,
    *(
        schemathesis.checks.CHECKS.get_one(name)
        for name in ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
    ),
]
CASES = {
    ("POST", "/v1/chat/completions"): 420,
    ("POST", "/v1/completions"): 320,
    ("POST", "/tokenize"): 180,
    ("POST", "/detokenize"): 150,
}
HANG_SECONDS = 30
statuses: Counter[int] = Counter()


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(lambda: AsyncEngine(tiny_engine(context_length=48))) as server:
        yield server


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("method", "path"), CASES)
def test_made_up_requests(server: Live, method: str, path: str, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")

    @settings(
        max_examples=CASES[method, path],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=document[path][method].as_strategy(generation_mode=mode))
    def answered(case: Case) -> None:
        if mode is GenerationMode.POSITIVE:
            mend(case)
        response = case.call(session=session, timeout=HANG_SECONDS)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    with requests.Session() as session:
        answered()


def mend(case: Case) -> None:
    """Keep a well-formed request from being refused for what the document can't tell: the model, whose turn it is.

    And keep the answers few and short: 128 of them of 47 tokens take a while and test nothing new.
    """
    if not isinstance(case.body, dict):
        return
    case.body.pop("model", None)
    if case.path.startswith("/v1/"):
        case.body["n"] = min(case.body.get("n") or 1, 3)
        case.body["max_tokens"] = min(case.body.get("max_tokens") or 4, 4)
        case.body.pop("max_completion_tokens", None)
    messages = case.body.get("messages")
    if isinstance(messages, list) and isinstance(messages[0], dict):
        case.body["messages"] = [{"role": "user", "content": messages[0].get("content") or "Hi"}]


def test_there_were_enough_of_them_and_the_server_is_well(server: Live) -> None:
    assert sum(statuses.values()) >= 2000
    assert statuses[200] > 300 and statuses[400] > 300, statuses
    assert max(statuses) < 500
    response = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"})
    assert response.status_code == 200 and not server.service.under_way

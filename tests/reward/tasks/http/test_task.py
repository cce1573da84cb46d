"""An HTTP endpoint as verifier, with a real server that misbehaves in every way."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.core.config import RewardConfig, TaskConfig
from cluster.core.types import Verdict
from reward.service import make_scorer, passed_variables
from reward.verifier_check import verifier_problem
from tests.builders import scored_by

PROBLEM = {"prompt": "2 + 2?", "answer": "4"}


class Service(ThreadingHTTPServer):
    """Does what the response says, or compares it with the answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/verify"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        service = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = request["response"]
        with service.lock:
            service.asked.append(text)
            tries = service.asked.count(text)
            service.at_once += 1
            service.most_at_once = max(service.most_at_once, service.at_once)
        match text.split(":"):
            case ["status", code, *body]:
                self.reply(int(code), ":".join(body).encode())
            case ["body", *body]:
                self.reply(200, ":".join(body).encode())
            case ["busy", until] if tries <= int(until):
                self.reply(503, b"come again")
            case ["hang"]:
                service.closing.wait(60)
            case ["drip"]:  # each byte comes in time, the whole does not
                self.send_response(200)
                self.end_headers()
                while not service.closing.wait(0.05):
                    self.wfile.write(b" ")
            case ["compressed"]:  # although the client did not accept that
                assert self.headers["Accept-Encoding"] == "identity"
                self.send_response(200)
                self.send_header("Content-Encoding", "gzip")
                self.end_headers()
                self.wfile.write(gzip.compress(b'{"reward": 1}'))
            case ["hang up"]:
                self.connection.close()
            case ["slow"]:
                service.closing.wait(0.1)
                self.reply(200, b'{"reward": 1}')
            case _:
                correct = text == request["problem"]["answer"] or text.startswith("busy")
                self.reply(200, json.dumps({"reward": float(correct), "answer": text}).encode())

    def reply(self, status: int, body: bytes) -> None:
        with self.server.lock:  # before the client hears it, and asks again
            self.server.at_once -= 1
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Not into the test's output."""


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward.tasks.http.client.FIRST_PAUSE_S", 0.01)


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    service.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients go away: that is tested
    thread = threading.Thread(target=service.serve_forever)
    thread.start()
    yield service
    service.closing.set()
    service.shutdown()
    thread.join()
    service.server_close()


def task(url: str, **options: Any) -> TaskConfig:
    return TaskConfig(name="http", options={"url": url, "timeout_s": 1.0, "retries": 2, **options})


async def verdicts(url: str, responses: list[str], **options: Any) -> list[Verdict]:
    scorer = make_scorer(task(url, **options), RewardConfig(), [])
    await scorer.start()
    try:
        return await scored_by(scorer, PROBLEM, responses)
    finally:
        await scorer.close()


async def test_the_reply_of_the_service_is_the_verdict(service: Service) -> None:
    responses = ["4", "5", 'body:{"reward": 0.5, "outcome": "correct", "reason": "nearly"}', "\ud800"]
    assert await verdicts(service.url, responses) == [
        Verdict("correct", 1.0, "4", ""),
        Verdict("incorrect", 0.0, "5", ""),
        Verdict("correct", 0.5, None, "nearly"),
        Verdict("incorrect", 0.0, "\\ud800", ""),
    ]


@pytest.mark.parametrize(
    ("response", "outcome", "reason", "attempts"),
    [
        ("hang", "error", "did not answer within 0.3 s (task.options.timeout_s)", 3),
        ("drip", "error", "did not answer within 0.3 s", 3),
        ("hang up", "error", "cannot be reached (RemoteProtocolError", 3),
        ("status:500:oh no", "error", "answered with status 500: 'oh no'", 3),
        ("status:429:", "error", "answered with status 429: ''", 3),
        ("status:404:not here", "error", "answered with status 404: 'not here'", 1),
        ("status:302:", "error", "answered with status 302", 1),
        ("body:<html>", "error", "answered with text that is not JSON: '<html>'", 1),
        ("body:", "error", "answered with text that is not JSON: ''", 1),
        ("body:[1]", "error", "answered with JSON that is not an object: '[1]'", 1),
        (
            "body:{}",
            "error",
            "answered with an invalid verdict: the verifier returned {}, without a reward",
            1,
        ),
        ('body:{"reward": "1"}', "error", "answered with an invalid verdict: ", 1),
        ('body:{"reward": NaN}', "error", "answered with an invalid verdict: ", 1),
        ('body:{"score": 1}', "error", "answered with an invalid verdict: ", 1),
        ("body:" + "x" * 2**22, "error", "answered with more than 1048576 bytes: 'xxx", 1),
        ('body:{"reward": 1' + "0" * 400 + "}", "error", "answered with an invalid verdict: ", 1),
        ('body:{"reward": 1' + "0" * 5000 + "}", "error", "answered with text that is not JSON: ", 1),
        ('body:{"reward": 1e309}', "error", "answered with an invalid verdict: ", 1),
        ("body:" + "[" * 200_000, "error", "answered with text that is not JSON: ", 1),
        ("body:" + '{"a":' * 150_000, "error", "answered with text that is not JSON: ", 1),
        ("compressed", "error", "answered with text that is not JSON: ", 1),
    ],
)
async def test_an_invalid_verdict_is_an_error_and_not_a_zero(
    service: Service, response: str, outcome: str, reason: str, attempts: int
) -> None:
    verdict, other = await verdicts(
        service.url, [response, "4"], timeout_s=0.3 if "did not answer within" in reason else 30
    )
    assert (verdict.outcome, verdict.reward) == (outcome, 0.0)
    assert f"{service.url} {reason}" in verdict.reason
    assert "\n" not in verdict.reason
    assert service.asked.count(response) == attempts
    assert other.outcome == "correct", "the others have their verdicts"


async def test_temporary_failures_are_retried(service: Service) -> None:
    scored = await verdicts(service.url, ["busy:1", "busy:2", "busy:3"])
    assert [verdict.outcome for verdict in scored] == ["correct", "correct", "error"]


async def test_concurrency_is_limited(service: Service) -> None:
    scorer = make_scorer(task(service.url, concurrency=3, timeout_s=30), RewardConfig(), [])
    await scorer.start()
    await asyncio.gather(*(scored_by(scorer, PROBLEM, ["slow"] * 4) for _ in range(3)))
    await scorer.close()
    assert service.most_at_once == 3


async def test_rewards_of_a_service_are_shaped_and_its_outcomes_are_not(service: Service) -> None:
    """Each character costs 0.1. If the service or the shaping function fails on a response, there is no verdict on it.
    If one of them hangs, no other response has to wait."""
    shaping = [{"function": "tests.reward.tasks.python.rewards:length_or_hang", "weight": -0.1}]
    reward = RewardConfig.model_validate(
        {"processes_per_worker": 2, "verifier_timeout_s": 60, "shaping": shaping}
    )
    scorer = make_scorer(task(service.url, timeout_s=60), reward, [])
    await scorer.start()
    asked = ["4", "55", "status:404:", "hang", "endless", "no number"]
    seen: dict[int, Verdict] = {}
    async with asyncio.timeout(40):
        async for arrived in scorer.score([(PROBLEM, text) for text in asked]):
            seen |= dict(arrived)
            if len(seen) == 4:
                break
    await scorer.close()
    assert {place: verdict.outcome for place, verdict in seen.items()} == {
        0: "correct",
        1: "incorrect",
        2: "error",
        5: "error",
    }
    assert [seen[place].reward for place in (0, 1, 2)] == pytest.approx([0.9, -0.2, 0])
    assert "returned the reward nan" in seen[5].reason


async def test_a_problem_that_is_not_json_is_reported(service: Service) -> None:
    scorer = make_scorer(task(service.url), RewardConfig(), [])
    await scorer.start()
    (verdict,) = await scored_by(scorer, {"when": {1, 2}}, ["4"])
    await scorer.close()
    assert "the problem is not JSON (Object of type set is not JSON serializable)" in verdict.reason


def test_an_endpoint_is_checked_before_the_run(service: Service) -> None:
    assert verifier_problem(task(service.url), RewardConfig(), [], PROBLEM) is None
    assert service.asked == [""]
    unreachable = "http://127.0.0.1:9/verify"
    for endpoint, obstacle in [
        (
            task(unreachable),
            f"the verifier gave no verdict on an empty response: {unreachable} cannot be reached (ConnectError: ",
        ),
        (TaskConfig(name="http"), "name the service: set task.options.url"),
    ]:
        found = verifier_problem(endpoint, RewardConfig(), [], PROBLEM)
        assert found is not None
        assert found.startswith(obstacle)
        assert "\n" not in found


@pytest.mark.parametrize("url", ["verify", "ftp://host/verify", "http://", "localhost:80"])
def test_an_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="write it as http://host:port/path"):
        make_scorer(task(url), RewardConfig(), [])


@pytest.mark.parametrize("value", ["PLANTED", "X-Api-Key: PLANTED"])
async def test_the_token_comes_from_a_variable(
    service: Service, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers: list[dict[str, str]] = []
    answer = Handler.do_POST

    def recording(handler: Handler) -> None:
        headers.append(dict(handler.headers))
        answer(handler)

    monkeypatch.setattr(Handler, "do_POST", recording)
    monkeypatch.setenv("SCORER_TOKEN", value)
    assert passed_variables(task(service.url, token_variable="SCORER_TOKEN")) == {"SCORER_TOKEN": value}
    (verdict,) = await verdicts(service.url, ["4"], token_variable="SCORER_TOKEN")
    assert verdict.reward == 1.0
    assert headers[0].get("Authorization") == "Bearer PLANTED" or headers[0].get("X-Api-Key") == "PLANTED"


@pytest.mark.parametrize(
    "reply",
    [
        "status:500:debug page, Authorization was Bearer PLANTED-PLANTED",
        "status:400:" + 90 * "x" + "PLANTED-PLANTED",  # a message quotes the first 100 characters
        "body:PLANTED-PLANTED",
        "body:" + json.dumps({"reward": 1, "reason": "for PLANTED-PLANTED", "answer": "PLANTED-PLANTED"}),
        "body:" + json.dumps({"reward": 1, "reason": "PLANTED-PLANTED"}).replace("PLANTED", r"PL\u0041NTED"),
        "body:" + json.dumps({"reward": 1, "PLANTED-PLANTED": 1}),
    ],
)
@pytest.mark.parametrize("header", ["", "X-Api-Key: ", "Authorization: Bearer "])
async def test_a_token_that_the_service_sends_back_is_not_in_the_verdict(
    service: Service, header: str, reply: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCORER_TOKEN", f"{header}PLANTED-PLANTED")
    (verdict,) = await verdicts(service.url, [reply], token_variable="SCORER_TOKEN", retries=0)
    assert "PLANT" not in f"{verdict.reason} {verdict.answer}"


@pytest.mark.parametrize("value", [None, "", "two\nlines", "é"])
def test_a_token_that_cannot_be_sent_is_refused(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCORER_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("SCORER_TOKEN", value)
    found = verifier_problem(
        task("http://127.0.0.1:9", token_variable="SCORER_TOKEN"), RewardConfig(), [], PROBLEM
    )
    assert found is not None
    assert found.startswith("task.options.token_variable: the variable SCORER_TOKEN ")


@pytest.mark.parametrize("name", ["sk-PLANTED", "service", "a b"])
def test_a_token_in_place_of_its_variable_is_refused_and_not_shown(name: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        make_scorer(task("http://127.0.0.1:9", token_variable=name), RewardConfig(), [])
    assert "PLANTED" not in str(refusal.value)


async def test_reasons_do_not_have_the_query_of_the_address() -> None:
    (verdict,) = await verdicts("http://127.0.0.1:9/score?mode=strict", ["4"], retries=0)
    assert verdict.reason.startswith("http://127.0.0.1:9/score cannot be reached")


@pytest.mark.parametrize(
    "url", ["http://u:PLANTED@h/x", "http://h/x?token=PLANTED", "http://h:99999/x", "http://h:abc/x"]
)
def test_an_address_with_a_secret_or_without_a_port_is_refused(url: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        make_scorer(task(url), RewardConfig(), [])
    assert "PLANTED" not in str(refusal.value)


@pytest.mark.parametrize(
    "proxy", ["rubbish", "http://[", "socks5://127.0.0.1:1", "::::", "http://u:PLANTED@h:99999"]
)
def test_a_proxy_that_cannot_be_used_is_one_line(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", "")
    found = verifier_problem(task("http://127.0.0.1:9/x", retries=0), RewardConfig(), [], PROBLEM)
    assert found is not None
    assert "\n" not in found
    assert "PLANTED" not in found

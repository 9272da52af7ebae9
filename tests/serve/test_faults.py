"""What must not come in, what takes too long, and clients that leave."""

import json
import socket
import threading
import time

import httpx
import pytest

from isounc.guard import Guard
from isounc.serve.judgement import Judge
from isounc.serve.service import Service
from isounc.serve.settings import Serve
from tests.serve.conftest import TOKEN, serving

MESSAGES = [{"role": "user", "content": "cafe"}]
CHECK = {"prompt": "a", "answer": " b"}
CHAT = {"messages": MESSAGES}


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/checks", b"{", 400, "the request must be JSON"),
        ("/v1/checks", b"", 400, "Field required"),
        ("/v1/checks", b'{"prompt": "\xff"}', 400, "JSON in UTF-8"),
        ("/v1/checks", b"[" * 100_000, 400, "JSON"),
        ("/v1/checks", b"[1]", 400, "valid dictionary"),
        ("/v1/checks", {"prompt": "a"}, 400, "answer: Field required"),
        ("/v1/checks", {"answer": "a"}, 400, "either messages or prompt"),
        ("/v1/checks", {**CHECK, **CHAT}, 400, "either messages or prompt"),
        ("/v1/checks", {"prompt": "a", "answer": "  "}, 400, "answer must hold text"),
        ("/v1/checks", {"prompt": "a", "answer": "</s>"}, 400, "special tokens alone"),
        ("/v1/checks", {**CHECK, "answers": 1}, 400, "answers: Extra inputs"),
        ("/v1/checks", {**CHECK, "prompt": 1}, 400, "prompt: Input should be a valid string, got 1"),
        ("/v1/checks", {**CHECK, "model": "gpt"}, 404, "model must be 'tiny'"),
        ("/v1/checks", {**CHECK, "answer": " ab" * 100}, 400, "at most 60 tokens, got"),
        ("/v1/checks", {"messages": [{"role": "tool", "content": "a"}], "answer": "b"}, 400, "role"),
        ("/v1/checks", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}],
                        "answer": "b"}, 400, "messages.0.content"),
        ("/v1/chat/completions", {"messages": []}, 400, "at least 1 item"),
        ("/v1/chat/completions", {**CHAT, "temperature": "1"}, 400, "temperature"),
        ("/v1/chat/completions", {**CHAT, "temperature": -1}, 400, "temperature"),
        ("/v1/chat/completions", {**CHAT, "tools": [{}]}, 400, "tools is not supported"),
        ("/v1/chat/completions", {**CHAT, "stop": ["a"] * 5}, 400, "at most 4 strings"),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 0}, 400, "max_tokens"),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 40}, 400, "max_tokens must be at most 17"),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 2, "max_completion_tokens": 2}, 400,
         "max_completion_tokens"),
        ("/v1/completions", {"prompt": "a" * 500}, 400, "fewer than 60 tokens"),
        ("/v1/completions", {"prompt": ["a"]}, 400, "prompt: Input should be a valid string"),
        ("/v1/feedback", {"id": "unknown", "correct": True}, 404, "id must be that of a check"),
        ("/v1/feedback", {"id": "unknown", "correct": "yes"}, 400, "correct"),
        ("/v1/nothing", {}, 404, "there is no endpoint /v1/nothing"),
    ],
)  # fmt: skip
def test_bad_requests_get_one_message(client, path, body, status, said):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert said in error["message"] and error["code"] == status
    assert client.post("/v1/checks", json=CHECK).status_code == 200


def test_other_methods_are_refused(client):
    response = client.get("/v1/checks")
    assert response.status_code == 405
    assert response.json()["error"]["message"] == "/v1/checks does not take GET"


def test_a_request_that_is_too_large_is_refused(client):
    for body in (b" " * 10_000_000, (b" " * 2**16 for _ in range(200))):  # with a length, in chunks
        response = client.post("/v1/checks", content=body)
        assert response.status_code == 413
        assert "at most 1048576 bytes" in response.json()["error"]["message"]
    assert client.get("/healthz").status_code == 200


def test_a_token_is_asked_for(url):
    for headers in (
        {}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"},
        {"x-api-key": "wrong"}, {"Authorization": f"Bearer {TOKEN}x"},
    ):  # fmt: skip
        for path in ("/v1/checks", "/metrics", "/v1/models", "/v1/nothing"):
            response = httpx.post(f"{url}{path}", json=CHECK, headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/", "/healthz", "/readyz"):
        assert httpx.get(f"{url}{path}").status_code == 200
    assert httpx.post(f"{url}/v1/checks", json=CHECK, headers={"x-api-key": TOKEN}).is_success
    response = httpx.get(f"{url}/healthz", headers={"Origin": "http://elsewhere"})
    assert "access-control-allow-origin" not in response.headers


def test_a_flood_of_headers_ends_its_connection_alone(url, client):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as flood:
        flood.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        answer = b""
        try:
            for k in range(10_000):
                flood.sendall(f"X-{k}: {'y' * 100}\r\n".encode())
            answer = flood.recv(1000)
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert answer == b"" or b" 400 " in answer
    assert client.get("/healthz").status_code == 200


@pytest.fixture
def idle(model, guard):
    """A service whose model never begins."""
    made = Service(model, Serve("tiny", max_tokens=60, max_waiting=2, seconds=0.3), guard)
    with serving(made) as address:
        yield made, address


def test_nothing_is_answered_before_the_programs_are_compiled(idle):
    made, address = idle
    assert httpx.get(f"{address}/readyz").status_code == 503
    response = httpx.post(f"{address}/v1/checks", json=CHECK)
    assert response.status_code == 503 and "starting" in response.json()["error"]["message"]
    assert httpx.get(f"{address}/healthz").status_code == 200
    made.engine.failure = ValueError("no more")
    response = httpx.get(f"{address}/healthz")
    assert response.status_code == 503 and "no more" in response.json()["error"]["message"]


def test_what_takes_too_long_and_what_finds_no_place(idle):
    made, address = idle
    made.engine.is_ready = True
    responses = []
    threads = [
        threading.Thread(
            target=lambda: responses.append(httpx.post(f"{address}/v1/checks", json=CHECK))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    while made.engine.num_waiting < 2:
        time.sleep(0.01)
    full = httpx.post(f"{address}/v1/completions", json={"prompt": "a"})
    assert full.status_code == 429 and full.headers["retry-after"] == "1"
    assert "2 requests wait already" in full.json()["error"]["message"]
    for thread in threads:
        thread.join()
    assert [r.status_code for r in responses] == [504, 504]
    assert "longer than a request may" in responses[0].json()["error"]["message"]


def test_a_client_that_leaves_frees_its_place(service, client, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    write = service.engine._writer.write
    turns = []

    def slowly(prompts):
        for turn, _ in enumerate(write(prompts)):
            begun.set()
            go_on.wait(10)
            turns.append(turn)
            yield

    monkeypatch.setattr(service.engine._writer, "write", slowly)
    body = {"prompt": "a cab", "stream": True, "temperature": 1, "seed": 3}
    with client.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())
        assert begun.wait(10)
    time.sleep(0.3)  # the service hears of it
    go_on.set()
    assert client.post("/v1/checks", json=CHECK).status_code == 200  # the model's thread goes on
    deadline = time.monotonic() + 10
    while service.engine._streams and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not service.engine._streams and not service.engine.num_waiting
    assert len(turns) < 3  # of three segments


def test_one_fault_is_not_that_of_the_batch(service, client, monkeypatch):
    """NaN logits of one answer: the others that were measured with it have their numbers."""
    from isounc.serve import warming

    def norms(decoder, packed, **keywords):
        if any(9 in sequence.targets for sequence in packed):
            raise ValueError("logits must be finite")
        return real(decoder, packed, **keywords)

    real = warming.answer_norms
    monkeypatch.setattr(warming, "answer_norms", norms)
    bad, good = {"prompt": "a", "answer": "g"}, {"prompt": "a", "answer": "c"}
    assert service.model.tokenizer.encode("g") == [9]
    found = {}

    def post(k, body):
        found[k] = client.post("/v1/checks", json=body)

    threads = [
        threading.Thread(target=post, args=(k, bad if k == 2 else good)) for k in range(4)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[k].status_code for k in range(4)] == [200, 200, 500, 200]
    assert "logits must be finite" in found[2].json()["error"]["message"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "other"}, "guard must be fitted to answers of tiny, got one of 'other'"),
        ({"score": "moderated"}, "guard must be fitted to a score of the service"),
        (
            {"higher_is_uncertain": True},
            "guard must take log_prob as high where the model is certain",
        ),
    ],
)
def test_a_guard_of_something_else_is_refused(model, changes, said):
    settings = {"score": "log_prob", "model": model.sha256, "higher_is_uncertain": False}
    with pytest.raises(ValueError, match=said):
        Judge(model, Guard.fit([1.0, 2.0], [1, 0], **settings | changes))
    Judge(model, Guard.fit([1.0, 2.0], [1, 0], **settings))

"""What must not come in, what takes too long, and clients that leave."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from isounc.guard import Guard
from isounc.serve.judgement import Judge
from isounc.serve.service import Refused, Service
from isounc.serve.settings import Serve
from isounc.serve.work import Check
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
        ("/v1/checks", b"[1]", 400, "must be a JSON object, got [1]"),
        ("/v1/checks", b'{"prompt": "a", "answer": "a\\udc00"}', 400, "half of a surrogate pair"),
        ("/v1/checks", b'{"prompt": "a", "answer": "b", "model": "\\ud800"}', 400, "surrogate"),
        ("/v1/checks", b'{"prompt": "a", "answer": "b", "\\ud800": 1}', 400, "unicode string"),
        ("/v1/checks", b'{"n": %s}' % (b"9" * 5000), 400, "endless numbers"),
        ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": [{"type": "text", '
         b'"text": "\\ud800"}]}]}', 400, "surrogate"),
        ("/v1/completions", b'{"prompt": "a", "stop": ["\\ud800"]}', 400, "surrogate"),
        ("/v1/completions", b'{"prompt": "a", "temperature": NaN}', 400, "temperature"),
        ("/beta/litellm_basic_guardrail_api", b'{"input_type": "response", "texts": ["b"], '
         b'"additional_provider_specific_params": {"replacement": "\\ud800"}}', 400, "surrogate"),
        ("/v1/checks", {"prompt": "a" * 500, "answer": "b"}, 400, "prompt must have fewer than 60"),
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
    made.engine.failure = ValueError("what a user wrote")
    response = httpx.get(f"{address}/healthz")
    assert (
        response.status_code == 503
        and "ended with ValueError" in response.json()["error"]["message"]
    )


def test_what_takes_too_long_and_what_finds_no_place(idle):
    made, address = idle
    made.engine.is_ready = True
    late = httpx.post(f"{address}/v1/checks", json=CHECK)
    assert late.status_code == 504
    assert "longer than a request may" in late.json()["error"]["message"]
    for _ in range(2):
        made.engine.check(Check([3], [4], "b"))
    full = httpx.post(f"{address}/v1/completions", json={"prompt": "a"})
    assert full.status_code == 429 and full.headers["retry-after"] == "1"
    assert "2 requests wait already" in full.json()["error"]["message"]


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


def test_a_client_that_leaves_ends_its_answer(service, client, url, monkeypatch):
    """Without a stream too, where the service hears nothing of it but the end of the connection."""
    begun, go_on, turns = threading.Event(), threading.Event(), []
    write = service.engine._writer.write

    def slowly(prompts):
        for turn, _ in enumerate(write(prompts)):
            begun.set()
            go_on.wait(10)
            turns.append(turn)
            yield

    monkeypatch.setattr(service.engine._writer, "write", slowly)
    left = 'isounc_requests_total{endpoint="/v1/completions",status="499"} '
    before = client.get("/metrics").text.partition(left)[2].partition("\n")[0] or "0"
    with connected(url) as leaving:
        body = json.dumps({"prompt": "a cab", "temperature": 1, "seed": 3})
        leaving.sendall(request("/v1/completions", len(body)) + body.encode())
        assert begun.wait(10)
    time.sleep(0.3)  # the service hears of it
    go_on.set()
    assert client.post("/v1/checks", json=CHECK).status_code == 200
    deadline = time.monotonic() + 10
    while service.engine._streams and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not service.engine._streams
    assert len(turns) < 3  # of three segments
    assert f"{left}{float(before) + 1}" in client.get("/metrics").text


def connected(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def request(path, size):
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    ).encode()


def test_a_request_that_never_comes_to_its_end_is_ended(idle):
    _, address = idle
    with connected(address) as slow:
        slow.sendall(request("/v1/checks", 100) + b'{"prompt"')
        answer = b"".join(iter(lambda: slow.recv(1000), b""))  # until the service closes
    assert b" 408 " in answer and b"longer than one may" in answer


def test_a_connection_without_a_request_is_closed(url, client, monkeypatch):
    monkeypatch.setattr("isounc.serve.connection.SECONDS", 0.2)
    whole = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    for before, sent in ((b"", b""), (b"", b"GET /healthz HTTP/1.1\r\nX-"), (whole, b"GET /he")):
        with connected(url) as slow:
            if before:
                slow.sendall(before)
                assert b" 200 " in slow.recv(1000)
            slow.settimeout(3)  # less than uvicorn keeps connections alive
            slow.sendall(sent)
            assert slow.recv(1000) == b""
    with connected(url) as patient:  # one that has an answer in time is kept
        for _ in range(3):
            patient.sendall(whole)
            assert b" 200 " in patient.recv(1000)
            time.sleep(0.25)
    assert client.get("/healthz").status_code == 200


def test_a_long_text_holds_nobody_else_up(service, client, monkeypatch):
    """Its tokens are found beside the event loop."""
    go_on, encode = threading.Event(), service.model.tokenizer.encode

    def slowly(*given, **keywords):
        assert go_on.wait(10)
        return encode(*given, **keywords)

    monkeypatch.setattr(service.model.tokenizer, "encode", slowly)
    found = []
    asking = threading.Thread(target=lambda: found.append(client.post("/v1/checks", json=CHECK)))
    asking.start()
    try:
        time.sleep(0.1)
        assert client.get("/healthz", timeout=3).status_code == 200
    finally:
        go_on.set()
        asking.join()
    assert found[0].status_code == 200


def test_other_content_is_refused_by_its_name(client):
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        response = client.post(
            "/v1/checks", content=json.dumps(CHECK), headers={"Content-Type": kind}
        )
        assert response.status_code == 400
        expected = f"Content-Type must be application/json, got {kind}"
        assert expected in response.json()["error"]["message"]


def test_a_fault_of_the_service_says_so_without_anybody_s_text(
    service, client, monkeypatch, caplog
):
    async def fails(given, answer):
        raise TypeError(given.text)

    monkeypatch.setattr(service, "check", fails)
    response = client.post("/v1/checks", json={"prompt": "what a user wrote", "answer": "b"})
    assert response.status_code == 500
    assert "fault of the service" in response.json()["error"]["message"]
    deadline = time.monotonic() + 10  # it is logged after the response
    while "TypeError" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "TypeError" in caplog.text and "in fails" in caplog.text
    assert "what a user wrote" not in caplog.text


@pytest.mark.parametrize("size", [1, 3])
def test_an_error_of_the_runtime_ends_one_answer_and_not_the_service(
    service, client, monkeypatch, size
):
    """Memory may hold one answer where it does not hold a batch, or not even that."""
    from isounc.serve import warming

    def norms(decoder, packed, **keywords):
        if len(packed) >= size:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return real(decoder, packed, **keywords)

    real = warming.answer_norms
    monkeypatch.setattr(warming, "answer_norms", norms)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: client.post("/v1/checks", json=CHECK), range(4)))
    assert [r.status_code for r in found] == [500 if size == 1 else 200] * 4
    if size == 1:
        assert "ended with RuntimeError" in found[0].json()["error"]["message"]
    assert client.get("/healthz").status_code == 200


def test_feedback_needs_a_guard(model):
    with pytest.raises(Refused, match="without --guard") as refused:
        Service(model, Serve("tiny")).add_feedback("check-1", True)
    assert refused.value.status == 404


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

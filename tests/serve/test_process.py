"""The command as a process of its own, and the page in a browser."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from isounc.guard import Guard
from isounc.serve.command import serve
from isounc.serve.settings import Serve
from tests.serve.conftest import TOKEN, serving

COMMAND = [sys.executable, "-m", "isounc", "serve"]


def test_sigterm_lets_running_requests_finish_and_no_text_is_logged(folder, guard, tmp_path):
    guard.save(tmp_path / "guard.json")
    process = subprocess.Popen(
        [*COMMAND, str(folder), "--guard", str(tmp_path / "guard.json"), "--port", "0",
         # The bounds of the fixture `service`, whose programs are in the cache of the tests.
         "--max-tokens", "60", "--max-new-tokens", "17", "--cache", ""],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"ISOUNC_TOKEN": TOKEN},
    )  # fmt: skip
    said = []
    assert process.stderr is not None
    try:
        for line in process.stderr:
            said.append(line)
            if match := re.search(r"tiny at (http://127\.0\.0\.1:\d+)", line):
                break
        url = match[1]
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
            while client.get("/readyz").status_code != 200:
                assert process.poll() is None
                threading.Event().wait(0.1)
            body = {"prompt": "a cab", "stream": True, "seed": 1}
            with client.stream("POST", "/v1/completions", json=body) as response:
                lines = response.iter_lines()
                first = next(lines)
                process.send_signal(signal.SIGTERM)
                rest = list(lines)
        assert first.startswith("data: {") and rest[-2] == "data: [DONE]"
        assert process.wait(30) == 0
    finally:
        process.kill()
    said += process.stderr.readlines()
    assert "Ended: the requests that were running have their answers." in said[-1]
    assert not any("a cab" in line for line in said)


def test_a_start_that_cannot_be_says_why(tmp_path, monkeypatch, capsys):
    """Before the model is loaded: there is none of that name."""
    (tmp_path / "guard.json").write_text("{}")
    with pytest.raises(ValueError, match="guard"):
        serve(Serve("nowhere", guard=str(tmp_path / "guard.json")))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 must be free"):
            serve(Serve("nowhere", port=port))
    with pytest.raises(OSError, match="host must be an address of this machine, got 'no where'"):
        serve(Serve("nowhere", host="no where", port=0))
    with pytest.raises(ValueError, match="max_tokens must be"):
        Serve("nowhere", max_tokens=10**6)
    monkeypatch.setenv("ISOUNC_TOKEN", "secret\n")
    with pytest.raises(ValueError, match="ISOUNC_TOKEN must be printable ASCII") as error:
        serve(Serve("nowhere"))
    assert "secret" not in str(error.value)
    monkeypatch.delenv("ISOUNC_TOKEN")
    Guard.fit([1.0, 2.0], [1, 0], higher_is_uncertain=False).save(tmp_path / "none.json")
    with pytest.raises(ValueError, match="source must be"):
        serve(Serve(str(tmp_path / "absent"), guard=str(tmp_path / "none.json"), port=0))
    assert "the guard has no threshold, so that no answer is accepted" in capsys.readouterr().err
    with pytest.raises(ValueError, match="max_waiting must be"):
        Serve("nowhere", max_waiting=0)


@pytest.fixture
def browser():
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("there is no Chromium (Debian's package chromium)")
    return found


def test_the_page_shows_an_answer_in_colours(browser, service, tmp_path):
    """What the answer holds is text, whatever it looks like; and the model writes where none is given."""
    with serving(service) as url, Page(browser, tmp_path) as page:
        page.open(f"{url}/#question=cafe&answer={quote('bad </s>cab')}")
        page.wait_for("by('cost').textContent.includes('tokens of prompt')")
        assert "Model tiny." in page.value("by('about').textContent")
        pieces = page.value("[...by('text').children].map((span) => span.textContent)")
        assert "".join(pieces) == "bad </s>cab"
        colours = page.value("[...by('text').children].map((span) => span.style.backgroundColor)")
        assert len(set(colours)) > 1 and all(colour.startswith("rgb") for colour in colours)
        assert "log_prob" in page.value("by('scores').textContent")
        decision = page.value("by('decision').textContent")
        assert re.match(r"(Accepted|Not accepted): log_prob is -[\d.]+, and the guard", decision)
        page.wait_for("!by('ask').disabled")
        page.value("by('answer').value = ''; by('ask').click()")
        page.wait_for("!by('ask').disabled")
        assert "tokens of prompt" in page.value("by('cost').textContent")
        assert page.value("by('text').children.length") > 0
        page.value(f"by('question').value = '{'a' * 400}'; by('ask').click()")
        page.wait_for("!by('ask').disabled")
        assert "must have fewer than 60 tokens" in page.value("by('error').textContent")


class Page:
    """A page in a headless browser, spoken to over its pipe (Chrome DevTools Protocol)."""

    def __init__(self, browser: str, folder: Path):
        reader, self._writer = os.pipe()
        self._reader, writer = os.pipe()
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu",
                   f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"]  # fmt: skip
        shell = f'exec "$0" "$@" 3<&{reader} 4>&{writer}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, *command], pass_fds=(reader, writer), stderr=subprocess.DEVNULL
        )
        os.close(reader)
        os.close(writer)
        self._rest, self._number, self._session = b"", 0, None

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._writer)
        os.close(self._reader)

    def _ask(self, method: str, **parameters: object) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                part = os.read(self._reader, 2**16)
                assert part, "the browser has ended"
                self._rest += part
            line, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._number:
                return answer["result"]

    def open(self, url: str) -> None:
        target = self._ask("Target.createTarget", url=url)["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.wait_for("document.readyState === 'complete' && typeof by === 'function'")

    def value(self, expression: str) -> Any:
        asked = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in asked, asked
        return asked["result"].get("value")

    def wait_for(self, condition: str) -> None:
        deadline = time.monotonic() + 30
        while not self.value(condition):
            assert time.monotonic() < deadline, f"not in time: {condition}"
            time.sleep(0.05)

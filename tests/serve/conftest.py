"""A service with a tiny model, at a real port, for all tests of this folder."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import httpx
import numpy as np
import pytest
import uvicorn

from isounc.guard import Guard
from isounc.llm import load_model
from isounc.serve.app import create_app
from isounc.serve.connection import TimedConnection
from isounc.serve.service import Service
from isounc.serve.settings import Serve
from tests.llm.files import write_folder

TOKEN = "a b-secret"
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}a{% endif %}"
    "{{ message.content }}{% endfor %}b"
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A checkpoint with a template, whose answers end with one of its 64 tokens."""
    path = write_folder(tmp_path_factory.mktemp("models") / "tiny", "qwen3")
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return path


@pytest.fixture(scope="session")
def model(folder):
    return load_model(folder)


@pytest.fixture(scope="session")
def guard(model):
    """Accepts answers whose log probability is high, and some others are not."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(-40, 0, 400)
    correct = rng.uniform(size=400) < 1 / (1 + np.exp(-(scores + 25)))
    return Guard.fit(
        scores, correct, higher_is_uncertain=False, score="log_prob", model=model.name,
        target_risk=0.1,
    )  # fmt: skip


@contextlib.contextmanager
def serving(service, token=""):
    """The service at a free port; its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            create_app(service, token=token), lifespan="off", log_config=None, http=TimedConnection,
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def service(model, guard):
    """A service that is ready."""
    made = Service(model, Serve("tiny", max_tokens=60, max_new_tokens=17), guard)
    made.engine.start()
    while not made.engine.is_ready:
        assert made.engine.failure is None
        time.sleep(0.05)
    yield made
    made.engine.close()


@pytest.fixture(scope="session")
def url(service):
    with serving(service, TOKEN) as address:
        yield address


@pytest.fixture(scope="session")
def client(url):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as made:
        yield made

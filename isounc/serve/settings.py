"""Settings of `isounc serve`."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from isounc.checks import check_count, check_real

ESTIMANDS = ("sequence", "length_normalised")
"""Probabilities of an answer whose scores are served: one backward pass has the gradients of both."""

MOST_PADDED = 131072
"""Tokens of the longest sequence that requests are padded to."""


@dataclass(frozen=True)
class Serve:
    """A model, the address, and the bounds of what is asked of it."""

    model: tyro.conf.Positional[str]
    """smollm2, a GGUF file, a folder with a checkpoint, or owner/name on the hub."""
    guard: str = ""
    """File of a guard (isounc guard fit), for decisions; without it there are scores alone."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is every network of this machine."""
    port: int = 8000
    """Port; 0 takes a free one, and says which."""
    token_variable: str = "ISOUNC_TOKEN"
    """Environment variable with the bearer token that clients must give; if it is unset or
    empty, anybody who reaches the port is served."""
    max_tokens: int = 512
    """Most tokens of a prompt with its answer; the model's context, if that is less."""
    max_new_tokens: int = 128
    """Most tokens of an answer that the model writes, whatever a request asks for."""
    max_waiting: int = 256
    """Requests that wait for the model; further ones are answered with status 429."""
    max_streams: int = 4
    """Groups of answers that are written at the same time; more wait."""
    max_request_mb: float = 1.0
    """Megabytes of the largest request; a larger one is answered with status 413."""
    seconds: float = 60.0
    """Seconds that a request may take; then it is answered with status 504, or 408 if it has not
    arrived."""
    ending_seconds: float = 30.0
    """Seconds that running requests get to finish when the service is asked to end."""
    log_text: bool = False
    """Write prompts and answers to the log; without it, no text of users is in it."""
    cache: str = "~/.cache/isounc/jax"
    """Folder of compiled programs; empty means none."""

    def __post_init__(self):
        for name, least, most in (
            ("port", 0, 65535), ("max_tokens", 2, MOST_PADDED), ("max_new_tokens", 1, MOST_PADDED),
            ("max_waiting", 1, 10**6), ("max_streams", 1, 10**3),
        ):  # fmt: skip
            check_count(name, getattr(self, name), least, most)
        for name in ("max_request_mb", "seconds", "ending_seconds"):
            check_real(name, getattr(self, name), positive=True)

    @property
    def max_bytes(self) -> int:
        """Bytes of the largest request."""
        return int(self.max_request_mb * 2**20)

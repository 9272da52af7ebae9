"""The process of `isounc.llm.model.chat_renderer`, which is started once and asked again and again."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from typing import Any


class NoAnswer(Exception):
    """The process ended, or took too long."""

    def __init__(self, is_late: bool, said: str = ""):
        super().__init__(said)
        self.is_late = is_late
        """Whether it took too long."""


class RenderingProcess:
    """A process that answers one request at a time.

    Parameters
    ----------
    file
        Path of its program.
    """

    def __init__(self, file: str):
        # Isolated: neither the folder nor the environment of this process has a say in what it loads.
        self._command = [sys.executable, "-I", file]
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._lock = threading.Lock()
        atexit.register(self.end)

    def ask(self, request: dict[str, Any], *, seconds: float) -> dict[str, Any]:
        """The answer to a request.

        Raises
        ------
        NoAnswer
            The process ended or took longer; the next request starts another.
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                line = self._lines.get(timeout=seconds)
            except queue.Empty:
                self.end()
                raise NoAnswer(is_late=True) from None
            except BrokenPipeError:
                line = b""
            except BaseException:
                # Interrupted: its answer would be taken for that of the next request.
                self.end()
                raise
            if not line:
                process.wait()
                self.end()
                raise NoAnswer(is_late=False, said=f"status {process.returncode}")
            return json.loads(line)

    def end(self) -> None:
        """End the process, and whatever it has started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                if hasattr(os, "killpg"):
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.close()
            self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.end()
            self._lines = queue.SimpleQueue()
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            threading.Thread(
                target=_read, args=(self._process, self._lines), name="chat", daemon=True
            ).start()
        return self._process


def _read(process: subprocess.Popen[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """Hand on what a process says; nothing at its end."""
    assert process.stdout is not None
    with process.stdout as said:
        for line in said:
            lines.put(line)
    lines.put(b"")


@functools.cache
def rendering_process(file: str) -> RenderingProcess:
    """The process of a program."""
    return RenderingProcess(file)

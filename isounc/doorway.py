"""The doorway of every command: whatever ends it, the user reads one message and gets a status.

This module imports the standard library alone, so that a command can stand inside of the doorway
before it imports anything that takes time.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from importlib import metadata

PATIENCE = 5.0
"""Seconds that a signal waits for the main thread, which may be inside of a long computation."""
_ENDING = ("SIGTERM", "SIGHUP")
_PACKAGES = ("isounc", "jax", "jaxlib", "flax", "blackjax", "numpy", "matplotlib", "tokenizers")


class Ended(BaseException):
    """A signal asked the process to end."""

    def __init__(self, number: int):
        super().__init__(f"Ended by {signal.Signals(number).name}")


def end(run: Callable[[], bool | None], *, kept: str) -> None:
    """Call `run` and end the process with a status and, unless all is well, one message.

    The status is 0; 1 if `run` returns False, for an error, and for a signal (Ctrl-C, SIGTERM,
    SIGHUP). An error that the user can mend has one line. Anything else is a fault of isounc, which
    shows its traceback and what to report.

    Parameters
    ----------
    kept
        What an interrupted run keeps, in the plural.
    """
    rest = f"Finished {kept} are kept: the same command goes on from here."
    _say_anything()
    try:
        with _ended_by_signals(rest):
            sys.exit(1 if run() is False else 0)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {_message(error)}")
    except KeyboardInterrupt:
        sys.exit(f"Interrupted. {rest}")
    except Ended as ended:
        sys.exit(f"{ended}. {rest}")
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            sys.exit(f"error: there is not enough memory for this command. {error}".rstrip())
        traceback.print_exc()
        sys.exit(f"This is a fault of isounc: please report the lines above, with\n{_versions()}")


def _message(error: Exception) -> str:
    """The message of an error; of the system's own, the file and what is wrong with it."""
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str | bytes):
        return f"{os.fsdecode(error.filename)}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)


def _say_anything() -> None:
    """Let standard output show what its encoding cannot: else a command ends after all its work."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore


def _versions() -> str:
    versions = [f"Python {platform.python_version()}", f"{platform.system()} {platform.machine()}"]
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    return ", ".join(versions)


@contextlib.contextmanager
def _ended_by_signals(rest: str) -> Iterator[None]:
    """Raise `Ended` in the main thread for signals that nobody handles or ignores.

    A computation that does not return to Python in time is left where it is: records are whole or
    absent whenever a process ends.
    """
    numbers = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
    in_main = threading.current_thread() is threading.main_thread()
    ours = [n for n in numbers if in_main and signal.getsignal(n) is signal.SIG_DFL]
    if not ours:
        yield
        return

    def handle(number: int, frame: object) -> None:
        raise Ended(number)

    def watch() -> None:
        # Python writes the number here at once, wherever the main thread may be.
        for number in iter(lambda: os.read(reader, 1), b""):
            if number[0] in (*ours, signal.SIGINT) and not left.wait(PATIENCE):
                name = signal.Signals(number[0]).name
                os.write(2, f"\nEnded by {name}. {rest}\n".encode())
                os._exit(1)
        os.close(reader)

    left = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=watch, daemon=True).start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in ours:
        signal.signal(number, handle)
    try:
        yield
    finally:
        left.set()
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(before)
        os.close(writer)

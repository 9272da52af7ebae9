"""The process that renders chat templates: conversations in, texts out, as JSON.

It is run by its path and imports nothing of isounc, so that it starts at once. A request is a line, and
each is worked on in a process forked for it, where the system can fork: its bounds hold for that process,
whatever the template does, and imports are paid once.
"""

import json
import os
import sys

MOST_SECONDS = 20
"""Processor time; thousands of conversations take one."""
MOST_BYTES = 2**30
"""Address space."""
MOST_TEXT = 2**22
"""Characters of a conversation."""


def bound() -> None:
    """Limit the process, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, most in ((resource.RLIMIT_CPU, MOST_SECONDS), (resource.RLIMIT_AS, MOST_BYTES)):
        _, hard = resource.getrlimit(kind)
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):  # macOS has no bound on the address space
            continue


def render(request: dict) -> list[str]:
    """Texts of the conversations of a request."""
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: object) -> None:
        raise jinja2.TemplateError(str(message))

    def to_json(value: object, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    # As transformers does, whose templates these are; no clock.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = to_json
    template = environment.from_string(request["template"])
    texts = []
    for messages in request["conversations"]:
        text = template.render(
            messages=messages, add_generation_prompt=True, tools=None, documents=None,
            **request["tokens"],
        )  # fmt: skip
        if len(text) > MOST_TEXT:
            raise ValueError(f"a text of {len(text)} characters, where {MOST_TEXT} are the most")
        texts.append(text)
    return texts


def answer(line: bytes) -> bytes:
    """The answer to a request: texts, or an error."""
    try:
        said = {"texts": render(json.loads(line))}
    except (Exception, MemoryError, RecursionError) as error:
        said = {"error": f"{type(error).__name__}: {error!s:.300}"}
    return json.dumps(said).encode()


def answer_in_a_fork(line: bytes) -> bytes:
    """The same within the bounds; or the signal that ended the process."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        bound()
        said = answer(line)
        with os.fdopen(writer, "wb") as out:
            out.write(said)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as given:
        said = given.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return json.dumps({"signal": os.WTERMSIG(status)}).encode()
    return said or json.dumps({"error": "it ended without an answer"}).encode()


def main() -> None:
    """Answer requests, a line each, until there are no more."""
    can_fork = hasattr(os, "fork")
    if can_fork:
        import jinja2.ext
        import jinja2.sandbox  # noqa: F401, the forks have it
    else:
        bound()
    for line in sys.stdin.buffer:
        said = (answer_in_a_fork if can_fork else answer)(line)
        sys.stdout.buffer.write(said + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

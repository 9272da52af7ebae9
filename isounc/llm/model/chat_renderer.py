"""The process that renders a chat template: conversations in, texts out, as JSON.

It is run by its path and imports nothing of isounc, so that it starts at once. Its bounds hold for the
whole process, whatever the template does.
"""

import json
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


def main() -> None:
    """Read a request from the standard input, and write its answer."""
    bound()
    try:
        answer = {"texts": render(json.load(sys.stdin))}
    except (Exception, MemoryError, RecursionError) as error:
        answer = {"error": f"{type(error).__name__}: {error!s:.300}"}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()

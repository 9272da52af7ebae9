"""Conversations in the form that a model was trained on, by the template that comes with it.

A template is a program (Jinja) that anybody may have written. It is rendered in jinja2's sandbox, where
it reaches nothing but the messages, in a process of its own with bounds on its time and memory
(`isounc.llm.model.chat_renderer`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isounc.fields import Unreadable, declared, integer, text
from isounc.llm.model import chat_renderer
from isounc.llm.model.chat_process import NoAnswer, rendering_process
from isounc.untrusted import MEGABYTE, decode_text, read_bytes, read_json

Message = tuple[str, str]
"""Role (`system`, `user` or `assistant`) and text."""
ROLES = ("system", "user", "assistant")
MOST_TEMPLATE = MEGABYTE
"""Characters of the largest template; those in use have a hundredth of these."""
_CONFIG_SIZE = 64 * MEGABYTE
"""Bytes of the largest tokenizer_config.json, which may list added tokens."""
_MOST_SECONDS = 60
"""Wall clock of a rendering process; the processor time is bounded more tightly."""


@dataclass(frozen=True)
class ChatTemplate:
    """The template of a model's conversations."""

    source: str
    """Text of the template, in Jinja."""
    model: str
    """Name of the model, for messages."""
    bos_token: str = ""
    """Text of the token that begins a text."""
    eos_token: str = ""
    """Text of the token that ends one."""

    def __post_init__(self):
        if len(self.source) > MOST_TEMPLATE:
            raise Unreadable(
                f"chat template of {self.model} must have at most {MOST_TEMPLATE} characters, got "
                f"{len(self.source)}"
            )

    def render(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """Texts of conversations, each up to where the assistant's next turn begins.

        Nothing must be added when they are encoded (`Tokenizer.encode(text, special=False)`):
        templates write the token that begins a text themselves. The date is not known to them, so
        that a prompt is the same on any day.

        Raises
        ------
        ValueError
            A message is no pair of a role of `ROLES` and a text; the template is none, refuses the
            messages, goes beyond its bounds, or reaches for what the sandbox does not give.
        """
        given = []
        for messages in conversations:
            for message in messages:
                if len(message) != 2 or message[0] not in ROLES or not isinstance(message[1], str):
                    raise ValueError(
                        f"messages must be pairs of a role ({', '.join(ROLES)}) and a text, got "
                        f"{message!r:.60}"
                    )
            given.append([{"role": role, "content": text} for role, text in messages])
        if not given:
            return []
        request = {
            "template": self.source,
            "conversations": given,
            "tokens": {"bos_token": self.bos_token, "eos_token": self.eos_token},
        }
        process = rendering_process(str(Path(chat_renderer.__file__)))
        try:
            answer = process.ask(request, seconds=_MOST_SECONDS)
        except NoAnswer as none:
            what = (
                f"takes more than {_MOST_SECONDS} seconds" if none.is_late else f"ends with {none}"
            )
            raise self._refused(f"one that {what}") from None
        if "signal" in answer:
            raise self._refused(f"one that goes beyond them (signal {answer['signal']})")
        if "error" in answer:
            raise self._refused(f"one that ends with {answer['error']:.300}")
        return answer["texts"]

    def _refused(self, given: str) -> Unreadable:
        return Unreadable(
            f"chat template of {self.model} must render the messages in the sandbox within its "
            f"bounds, got {given}"
        )


def template_of_gguf(metadata: Mapping[str, Any], name: str) -> ChatTemplate | None:
    """The template in the metadata of a GGUF file; None if it has none.

    Raises
    ------
    ValueError
        It is no text, or a token that it may write does not exist.
    """
    key = "tokenizer.chat_template"
    if metadata.get(key) is None:
        return None
    tokens = metadata.get("tokenizer.ggml.tokens")
    tokens = tokens if isinstance(tokens, list) else []
    number = integer(0, max(len(tokens) - 1, 0), default=None)
    ends = {end: f"tokenizer.ggml.{end}_token_id" for end in ("bos", "eos")}
    table = {key: text(), **dict.fromkeys(ends.values(), number)}
    given = declared(metadata, table, name)
    words = {
        f"{end}_token": "" if given[entry] is None else str(tokens[given[entry]])
        for end, entry in ends.items()
    }
    return ChatTemplate(given[key], name, **words)


def template_of_folder(path: Path) -> ChatTemplate | None:
    """The template of a Hugging Face checkpoint; None if it has none.

    It is in chat_template.jinja, or in tokenizer_config.json, of several the one named default.

    Raises
    ------
    ValueError
        A file is damaged or no regular file, or holds anything else.
    """
    what = f"tokenizer_config.json of {path.name}"
    try:
        config = read_json(path / "tokenizer_config.json", most=_CONFIG_SIZE, what=what)
    except FileNotFoundError:
        config = {}
    if not isinstance(config, dict):
        raise Unreadable(f"{what} must be a JSON object, got {config!r:.40}")
    file = f"chat_template.jinja of {path.name}"
    try:
        data = read_bytes(path / "chat_template.jinja", most=4 * MOST_TEMPLATE, what=file)
        source = decode_text(data, file)
    except FileNotFoundError:
        source = config.get("chat_template")
    if isinstance(source, list):  # of objects with a name and a template
        named = [item for item in source if isinstance(item, dict)]
        source = next((i.get("template") for i in named if i.get("name") == "default"), None)
    if source is None:
        return None
    if not isinstance(source, str):
        raise Unreadable(f"chat_template in {what} must be text, got {source!r:.40}")
    words = {}
    for key in ("bos_token", "eos_token"):
        word = config.get(key)
        word = word.get("content") if isinstance(word, dict) else word
        if word is not None and not isinstance(word, str):
            raise Unreadable(f"{key} in {what} must be text, got {word!r:.40}")
        words[key] = word or ""
    return ChatTemplate(source, path.name, **words)

"""Requests, as clients write them: OpenAI's conventions, and those of this service.

What is checked here has a fault's name and place in the answer (status 400). Fields of OpenAI's that
would change an answer, and that the service does not have, are refused; others that it does not know
are left alone, as clients send new ones.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from isounc.llm.model.chat import Message

MOST_STOPS = 4
"""Stop strings of a request, as in OpenAI's interface."""
_UNSUPPORTED = {
    "n": (None, 1), "best_of": (None, 1), "echo": (None, False), "suffix": (None, ""),
    "logit_bias": (None, {}), "presence_penalty": (None, 0), "frequency_penalty": (None, 0),
    "tools": (None, []), "functions": (None, []), "top_logprobs": (None, 0),
    "response_format": (None, {"type": "text"}), "audio": (None,),
}  # fmt: skip
"""Values of OpenAI's fields with which they change nothing."""


def _whole(text: str) -> str:
    """The text, unless it has half of a surrogate pair: JSON can spell one, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("text must be Unicode, without half of a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]


class _Request(BaseModel):
    """A request whose numbers are numbers, not text."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: Text | None = None
    """Name of the model; without it, the one that is served."""


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    """Only text is understood."""
    text: Text
    """The text."""


def _text(content: Any) -> Any:
    """The text of a message that may come in parts."""
    if not isinstance(content, list):
        return content
    return "".join(TextPart.model_validate(part).text for part in content)


class ChatMessage(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    """Who speaks; developer is another word for system."""
    content: Annotated[Text, BeforeValidator(_text)]
    """What is said: a string, or a list of parts of type text."""

    def pair(self) -> Message:
        """Role and text."""
        return ("system" if self.role == "developer" else self.role), self.content


Messages = Annotated[list[ChatMessage], Field(min_length=1)]


class _Generation(_Request):
    """How an answer is written."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of the answer; without it, or where it is larger, as many as the service allows."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Logits are divided by it; 0 takes the most probable token. Without it 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Sample among the fewest tokens that hold this much probability. Without it 1, all of them."""
    stop: str | list[str] | None = None
    """The answer ends before the first of these strings."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    """Equal seeds give equal answers."""
    stream: bool | None = None
    """Send the answer as it is written (server-sent events)."""
    stream_options: dict[str, Any] | None = None
    """`include_usage` adds a last event with the numbers of tokens."""

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for name, harmless in _UNSUPPORTED.items():
                if name in given and given[name] not in harmless:
                    raise ValueError(
                        f"{name} is not supported by this service: leave it out, got "
                        f"{given[name]!r:.60}"
                    )
        return given

    @field_validator("stop")
    @classmethod
    def _few(cls, stop: str | list[str] | None) -> str | list[str] | None:
        words = [stop] if isinstance(stop, str) else stop or []
        if len(words) > MOST_STOPS or not all(words):
            raise ValueError(f"stop must be at most {MOST_STOPS} strings, none of them empty")
        for word in words:
            _whole(word)
        return stop

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool((self.stream_options or {}).get("include_usage"))


class ChatCompletionRequest(_Generation):
    """POST /v1/chat/completions."""

    messages: Messages
    """The conversation."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """OpenAI's newer name of max_tokens."""
    logprobs: bool | None = None
    """Give the log probability of each token."""


class CompletionRequest(_Generation):
    """POST /v1/completions."""

    prompt: Annotated[Text, Field(min_length=1)]
    """The text that the model continues."""
    logprobs: int | None = None
    """Give the log probability of each token; alternatives are not given, whatever the number."""


class CheckRequest(_Request):
    """POST /v1/checks: an answer that somebody gave is measured; nothing is written."""

    model_config = ConfigDict(strict=True, extra="forbid")

    messages: Messages | None = None
    """The conversation before the answer."""
    prompt: Annotated[Text, Field(min_length=1)] | None = None
    """A text before the answer, in place of a conversation."""
    answer: Text
    """The answer. After a prompt it begins with the space that is between them."""

    @model_validator(mode="after")
    def _one(self) -> CheckRequest:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give either messages or prompt")
        if not self.answer.strip():
            raise ValueError("answer must hold text")
        return self


class FeedbackRequest(BaseModel):
    """POST /v1/feedback: what an answer turned out to be."""

    model_config = ConfigDict(strict=True, extra="forbid")

    id: Annotated[Text, Field(min_length=1, max_length=200)]
    """The id of a check or completion."""
    correct: bool
    """Whether the answer was right."""


class GuardrailParameters(BaseModel):
    """What a gateway is configured to send along."""

    model_config = ConfigDict(extra="ignore")

    replacement: Text | None = None
    """What takes the place of an answer that the guard does not accept."""


class GuardrailRequest(BaseModel):
    """POST /beta/litellm_basic_guardrail_api: LiteLLM asks about a request or a response."""

    model_config = ConfigDict(extra="ignore")

    input_type: Literal["request", "response"]
    """A request passes, and its conversation is kept until its response comes."""
    texts: list[Text] | None = None
    """The texts of the messages, or of the response."""
    structured_messages: list[dict[str, Any]] | None = None
    """The conversation."""
    litellm_call_id: Text | None = None
    """The same for a request and its response."""
    additional_provider_specific_params: GuardrailParameters | None = None
    """`{"replacement": TEXT}` replaces an answer that the guard does not accept (the action is then
    GUARDRAIL_INTERVENED); without it, the answer is BLOCKED."""

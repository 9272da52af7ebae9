"""LiteLLM's generic guardrail interface: a gateway asks whether an answer may pass.

The gateway calls twice. Before the model (`input_type` request) it sends the conversation, which
always passes; after it (response) the answer. An answer is judged as the continuation of its
conversation, which newer gateways send again and which is otherwise looked up by the call's id.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError

from isounc.llm.model.chat import Message
from isounc.serve.schemas import ChatMessage, GuardrailRequest
from isounc.serve.service import Refused, Service, within

PATH = "/beta/litellm_basic_guardrail_api"
_MOST_CHARACTERS = 2**24
"""Characters of the conversations that are kept for their answers; the oldest are forgotten first."""
_MOST_TEXTS = 16
"""Answers of one response."""


class Calls:
    """Conversations by the id of their call, up to a number of characters.

    A conversation is kept after its answer: a gateway asks several times about one that is streamed.
    """

    def __init__(self, most: int = _MOST_CHARACTERS):
        self._most, self._size = most, 0
        self._kept: OrderedDict[str, list[Message]] = OrderedDict()

    def keep(self, call: str, messages: list[Message]) -> None:
        """Keep a conversation in place of an older one of the same call."""
        self.forget(call)
        self._kept[call] = messages
        self._size += _characters(call, messages)
        while self._size > self._most:
            self.forget(next(iter(self._kept)))

    def forget(self, call: str) -> None:
        """Keep the conversation of a call no longer."""
        if call in self._kept:
            self._size -= _characters(call, self._kept.pop(call))

    def get(self, call: str) -> list[Message]:
        """The conversation of a call; empty if it is not kept."""
        return self._kept.get(call, [])


def _characters(call: str, messages: Sequence[Message]) -> int:
    # A message takes some memory however short it is.
    return len(call) + sum(100 + len(text) for _, text in messages)


def router(service: Service) -> APIRouter:
    """The endpoint of a service.

    Raises
    ------
    Refused
        With status 422, if the conversation of an answer is not known, or there is no guard.
    """
    routes = APIRouter()
    calls = Calls()

    @routes.post(PATH)
    async def guardrail(request: GuardrailRequest) -> dict[str, Any]:
        """Whether a request or a response may pass."""
        if service.judge.guard is None:
            raise Refused(422, "the service must be started with --guard to decide about answers")
        call = request.litellm_call_id
        if request.input_type == "request":
            if call:
                calls.forget(call)
                # One that cannot be judged, with images or tools, passes: its answer will not.
                with contextlib.suppress(Refused):
                    calls.keep(call, _messages(request))
            return {"action": "NONE"}
        messages = _messages(request) if request.structured_messages else calls.get(call or "")
        if not messages:
            raise Refused(
                422, "structured_messages must hold the conversation of the response: run the "
                "guardrail in the modes pre_call and post_call", "structured_messages",
            )  # fmt: skip
        texts = [text for text in request.texts or () if text.strip()]
        if len(texts) > _MOST_TEXTS:
            raise Refused(422, f"texts must be at most {_MOST_TEXTS}, got {len(texts)}", "texts")
        deadline = service.deadline()
        given = await within(service.given(messages, None), deadline)
        decisions = [
            (await within(service.check(given, text), deadline)).uncertainty for text in texts
        ]
        refused = [u["guard"] for u in decisions if u["decision"] != "accept"]
        if not refused:
            return {"action": "NONE"}
        extra = request.additional_provider_specific_params
        if extra is not None and (replacement := extra.replacement) is not None:
            accepted = iter(u["decision"] == "accept" for u in decisions)
            kept = [
                t if not t.strip() or next(accepted) else replacement for t in request.texts or ()
            ]
            return {"action": "GUARDRAIL_INTERVENED", "texts": kept}
        return {"action": "BLOCKED", "blocked_reason": _reason(refused[0])}

    return routes


def _messages(request: GuardrailRequest) -> list[Message]:
    """The conversation of a request, or its texts as what a user said."""
    if request.structured_messages:
        try:
            return [ChatMessage.model_validate(m).pair() for m in request.structured_messages]
        except ValidationError as error:
            first = error.errors()[0]
            raise Refused(
                422, f"structured_messages must be messages with a role and text: {first['msg']}",
                "structured_messages",
            ) from error  # fmt: skip
    return [("user", text) for text in request.texts or ()]


def _reason(guard: dict[str, Any]) -> str:
    if guard["threshold"] is None:
        return "The answer is not certain enough: the guard of this service accepts no answer."
    return (
        f"The answer is not certain enough: its {guard['score']} is {guard['value']}, and the guard "
        f"accepts answers {guard['accepts']} {guard['threshold']:.6g}."
    )

"""LiteLLM in front of the service: its guardrail, and its client; feedback and the monitor."""

import asyncio
import os

import pytest

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no network at import

import litellm
from litellm.exceptions import GuardrailRaisedException
from litellm.proxy.guardrails.guardrail_hooks.generic_guardrail_api import GenericGuardrailAPI

from isounc.serve.guardrail import Calls
from isounc.serve.monitoring import Feedback
from tests.serve.conftest import TOKEN

MESSAGES = [{"role": "user", "content": "cafe"}]
UNSURE = " abcdefgh" * 3


def ask(url, texts, input_type, *, call="call-1", messages=None, **extra):
    """What LiteLLM's own guardrail makes of the service's answer."""
    guardrail = GenericGuardrailAPI(
        api_base=url, api_key=TOKEN, guardrail_name="isounc", event_hook="post_call",
        additional_provider_specific_params=extra,
    )  # fmt: skip
    inputs = {"texts": texts, "structured_messages": messages}

    class Call:
        litellm_call_id, litellm_trace_id, model_call_details = call, None, {}

    return asyncio.run(guardrail.apply_guardrail(inputs, {}, input_type, Call())).get("texts")


def test_an_answer_that_the_guard_does_not_accept_is_blocked(url):
    assert ask(url, ["cafe"], "request", messages=MESSAGES) == ["cafe"]
    # The conversation is that of the call, however often an answer that is streamed is asked about.
    for _ in range(2):
        assert ask(url, ["b"], "response") == ["b"]
    with pytest.raises(GuardrailRaisedException, match="not certain enough: its log_prob is -"):
        ask(url, [UNSURE], "response")
    # Replaced instead; texts that say nothing stay as they are.
    texts = ["b", "", UNSURE]
    replaced = ask(url, texts, "response", messages=MESSAGES, replacement="Ask a person.")
    assert replaced == ["b", "", "Ask a person."]


def test_an_answer_without_its_conversation_is_no_pass(url):
    with pytest.raises(Exception, match="failed"):
        ask(url, ["b"], "response", call="another")


def test_a_conversation_that_cannot_be_judged_passes_and_its_answer_does_not(url):
    tool = [*MESSAGES, {"role": "tool", "content": "face", "tool_call_id": "1"}]
    assert ask(url, ["cafe"], "request", call="tools", messages=tool) == ["cafe"]
    with pytest.raises(Exception, match="failed"):
        ask(url, ["b"], "response", call="tools")


def test_conversations_are_kept_up_to_a_size():
    calls, long = Calls(most=2000), [("user", "a" * 700)]
    for call in "abc":
        calls.keep(call, long)
    calls.keep("c", long)
    assert [bool(calls.get(call)) for call in "abc"] == [False, True, True]
    calls.keep("d", [("user", "a" * 5000)])
    assert not any(calls.get(call) for call in "abcd")


def test_litellm_completes(url):
    answer = litellm.completion(
        model="openai/tiny", messages=MESSAGES, api_base=f"{url}/v1", api_key=TOKEN, temperature=0,
        max_retries=0,
    )  # fmt: skip
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


def test_feedback_counts_once_and_raises_an_alarm(client, guard):
    sure = {"prompt": "a", "answer": "b"}
    checked = [client.post("/v1/checks", json=sure).json() for _ in range(12)]
    assert {c["decision"] for c in checked} == {"accept"}
    states = [
        client.post("/v1/feedback", json={"id": c["id"], "correct": False}).json() for c in checked
    ]
    assert states[-1]["labelled"] == 12
    since = [state["alarm_since"] for state in states]
    assert since[0] is None and since[-1] in [c["id"] for c in checked]
    assert states[-1]["risk_lower_bound"] > guard.certificate.target_risk
    again = client.post("/v1/feedback", json={"id": checked[0]["id"], "correct": True})
    assert again.status_code == 404
    assert "isounc_alarm 1.0" in client.get("/metrics").text


def test_the_oldest_answers_are_forgotten(guard, monkeypatch):
    monkeypatch.setattr("isounc.serve.monitoring.MOST_REMEMBERED", 2)
    feedback = Feedback(guard)
    for name in "abc":
        feedback.remember(name, {"log_prob": -1.0})
    with pytest.raises(KeyError):
        feedback.add("a", True)
    assert feedback.add("b", True).num_labelled == 1

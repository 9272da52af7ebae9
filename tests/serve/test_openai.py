"""OpenAI's endpoints, asked by OpenAI's own client."""

import asyncio
import json

import numpy as np
import openai
import pytest

from isounc.llm.answers.rendering import Given
from isounc.llm.model.generate import GenerationSettings, generate
from isounc.serve import openai as endpoints
from isounc.serve.service import Refused, Service
from isounc.serve.settings import Serve
from isounc.serve.work import Written
from tests.serve.conftest import TOKEN

MESSAGES = [{"role": "user", "content": "cafe"}]
CHAT = "acafeb"
"""The conversation in the form of the template."""


@pytest.fixture(scope="module")
def asking(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0) as made:
        yield made


def chat(asking, **changes):
    return asking.chat.completions.create(
        **{"model": "tiny", "messages": MESSAGES, "temperature": 0, **changes}
    )


def written(model, prompt, **changes):
    settings = GenerationSettings(max_new_tokens=17, **changes)
    return generate(model, [model.tokenizer.encode(prompt, special=False)], settings)


def test_an_answer_is_that_of_the_library(asking, model, client):
    answer = chat(asking, logprobs=True)
    alone = written(model, CHAT, temperature=0.0)
    (choice,) = answer.choices
    assert choice.message.content == alone.text[0][0]
    size = alone.text_lengths[0, 0]
    assert [t.logprob for t in choice.logprobs.content] == pytest.approx(
        alone.log_probs[0, 0, :size].tolist(), abs=1e-5
    )
    assert choice.finish_reason == ("stop" if alone.stopped[0, 0] else "length")
    assert answer.usage.prompt_tokens == len(model.tokenizer.encode(CHAT, special=False))
    assert answer.usage.completion_tokens == alone.lengths[0, 0]
    # The same scores as those of the text, when it is given.
    body = {"messages": MESSAGES, "answer": choice.message.content}
    checked = client.post("/v1/checks", json=body).json()
    if [t["token"] for t in checked["tokens"]] == [t.token for t in choice.logprobs.content]:
        assert answer.uncertainty["scores"] == pytest.approx(checked["scores"], rel=1e-5)
    assert answer.uncertainty["decision"] in ("accept", "abstain")


def test_a_stream_has_the_same_text_and_ends_with_the_verdict(asking):
    whole = chat(asking, logprobs=True)
    options = {"include_usage": True}
    chunks = list(chat(asking, stream=True, logprobs=True, stream_options=options))
    parts = [c.choices[0] for c in chunks if c.choices]
    assert "".join(p.delta.content or "" for p in parts) == whole.choices[0].message.content
    assert [t.logprob for p in parts if p.logprobs for t in p.logprobs.content] == pytest.approx(
        [t.logprob for t in whole.choices[0].logprobs.content]
    )
    assert parts[0].delta.role == "assistant"
    assert [p.finish_reason for p in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1].finish_reason == whole.choices[0].finish_reason
    assert [hasattr(c, "uncertainty") for c in chunks] == [False] * (len(chunks) - 2) + [
        True,
        False,
    ]
    assert chunks[-2].uncertainty["scores"] == whole.uncertainty["scores"]
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert all(c.usage is None and "usage" in c.model_fields_set for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_seeds_reproduce(asking, model):
    def sampled(seed, **changes):
        return chat(asking, temperature=1, seed=seed, **changes).choices[0].message.content

    first = sampled(7)
    assert first == written(model, CHAT, seed=7).text[0][0]
    assert sampled(7) == first
    assert sampled(-7) == sampled(-7)
    assert len({sampled(seed) for seed in range(6)}) > 1
    nucleus = written(model, CHAT, seed=7, top_p=0.5, temperature=0.7).text[0][0]
    answer = chat(asking, temperature=0.7, seed=7, top_p=0.5)
    assert answer.choices[0].message.content == nucleus


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_an_answer_and_are_not_in_it(asking, model, stream):
    whole = written(model, CHAT, temperature=0.0).text[0][0]
    stop = whole[3:5]
    expected = whole[: whole.index(stop)]
    answer = chat(asking, stop=[stop, "zz"], stream=stream)
    if stream:
        parts = [c.choices[0] for c in answer]
        text, reason = "".join(p.delta.content or "" for p in parts), parts[-1].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, reason) == (expected, "stop")


def test_fewer_tokens(asking, model):
    answer = chat(asking, max_completion_tokens=3)
    alone = written(model, CHAT, temperature=0.0)
    assert answer.usage.completion_tokens == 3
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == model.tokenizer.decode(alone.tokens[0, 0, :3])


def test_more_tokens_than_the_service_writes_are_a_bound_like_any_other(asking):
    most, asked = chat(asking), chat(asking, max_tokens=4096)
    assert asked.choices == most.choices and asked.usage == most.usage
    assert asked.usage.completion_tokens <= 17


def test_the_log_probabilities_of_a_stream_end_where_its_text_does(asking, model):
    text = written(model, CHAT, temperature=0.0).text[0][0]
    stop = text[8:11]
    whole = chat(asking, stop=stop, logprobs=True).choices[0]
    parts = [c.choices[0] for c in chat(asking, stop=stop, logprobs=True, stream=True)]
    tokens = [t.token for p in parts if p.logprobs for t in p.logprobs.content]
    assert tokens == [t.token for t in whole.logprobs.content]


def test_bytes_of_a_part_of_a_character_are_not_made_up(model, monkeypatch):
    service = Service(model, Serve("tiny"))
    monkeypatch.setattr(model.tokenizer, "decode_each", lambda ids, **_: ["é", "\ufffd"])
    wanted = endpoints._Wanted("chat.completion", "id", 0, True, False)
    written = Written(np.array([3, 4]), np.zeros(2), "é\ufffd", 2, "length")
    choice = endpoints._choice(service, wanted, written, 0, written.text, whole=True)
    assert [t["bytes"] for t in choice["logprobs"]["content"]] == [[0xC3, 0xA9], None]


def test_a_token_that_the_model_does_not_have_is_refused(model, monkeypatch):
    service = Service(model, Serve("tiny"))
    monkeypatch.setattr(model.tokenizer, "encode", lambda text, **_: [64] * len(text))
    with pytest.raises(Refused, match=r"prompt must hold tokens of the model.* 64, got number 64"):
        asyncio.run(service.given(None, "<image>"))
    given = Given("a", False, [3])
    with pytest.raises(Refused, match="answer must hold tokens of the model"):
        asyncio.run(service.check(given, "<image>"))


def test_completions(asking, model):
    answer = asking.completions.create(
        model="tiny", prompt="a cab", temperature=0, logprobs=0, max_tokens=9
    )
    alone = generate(model, ["a cab"], GenerationSettings(max_new_tokens=9, temperature=0.0))
    (choice,) = answer.choices
    assert choice.text == alone.text[0][0]
    assert choice.logprobs.token_logprobs == pytest.approx(
        alone.log_probs[0, 0, : alone.text_lengths[0, 0]].tolist(), abs=1e-5
    )
    offsets = choice.logprobs.text_offset
    assert offsets[0] == 0 and offsets == sorted(offsets)
    chunks = list(
        asking.completions.create(
            model="tiny", prompt="a cab", temperature=0, max_tokens=9, stream=True
        )
    )
    assert "".join(c.choices[0].text for c in chunks) == choice.text


def test_models(asking, model):
    (served,) = asking.models.list().data
    assert served.id == model.name and served.sha256 == model.sha256
    assert asking.models.retrieve(model.name) == served
    with pytest.raises(openai.NotFoundError, match="model must be 'tiny'"):
        asking.models.retrieve("owner/other")


def test_errors_are_openai_s(asking, url):
    with pytest.raises(openai.NotFoundError, match="model must be 'tiny'"):
        chat(asking, model="other")
    with pytest.raises(openai.BadRequestError, match="n is not supported"):
        chat(asking, n=2)
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="bearer token"),
    ):
        chat(stranger)


def test_events_are_server_sent_events(client):
    body = {"messages": MESSAGES, "temperature": 0, "stream": True}
    response = client.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert all(json.loads(event.removeprefix("data: "))["id"] for event in events)

"""The thread of the model: nothing is lost, and everybody hears of what goes wrong."""

import threading

import numpy as np
import pytest

from isounc.serve import engine as module
from isounc.serve.engine import Busy, Engine, Unavailable
from isounc.serve.work import Check, Continuation, Written
from isounc.serve.writing import Writer, key_of


@pytest.fixture
def engine(model):
    """One whose thread has not begun, as if all programs were compiled."""
    made = Engine(model, max_tokens=60, max_new_tokens=17, max_waiting=2)
    made.is_ready = True
    return made


def check():
    return Check([3], [4, 5], "")


def continuation(heard, **changes):
    given = {
        "prompt_ids": [3, 4],
        "max_new_tokens": 3,
        "temperature": 0.0,
        "top_p": 1.0,
        "stop": (),
    }
    return Continuation(**given | changes, key=key_of(0, [3, 4]), on_written=heard.append)


def test_a_request_that_comes_while_a_batch_is_taken_is_not_lost(engine):
    engine.check(check())
    late = threading.Thread(target=engine.check, args=(check(),))
    with engine._changed:
        late.start()
        late.join(0.1)  # it waits for the lock
        assert len(engine._next_checks()) == 1
    late.join()
    assert engine.num_waiting == 1


def test_places_of_clients_that_have_left_are_free(engine):
    left, heard = check(), []
    engine.check(left)
    gone = continuation(heard)
    engine.write(gone)
    with pytest.raises(Busy, match="2 requests wait already"):
        engine.check(check())
    left.result.cancel()
    gone.left.set()
    engine.check(check())
    engine.write(continuation(heard))
    assert engine.num_waiting == 2


def test_the_answer_of_a_request_that_has_waited_needs_no_place(engine):
    for _ in range(2):
        engine.check(check())
    engine.check(check(), admitted=True)
    assert engine.num_waiting == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_all_are_told_when_the_thread_ends(engine, monkeypatch):
    heard, waiting, running = [], check(), check()
    monkeypatch.setattr(module, "warm_up", lambda *arguments: iter(()))

    def end(checks):
        assert checks == [running]
        engine._checks.append(waiting)
        raise SystemExit

    monkeypatch.setattr(engine, "_measure", end)
    engine.check(running)
    stream = continuation(heard)
    engine._streams.append((iter(()), [stream]))
    engine.start()
    for told in (running, waiting):
        error = told.result.exception(10)
        assert isinstance(error, RuntimeError) and "SystemExit" in str(error)
    engine._thread.join()
    assert [str(error) for error in heard] == ["the model's thread has ended with SystemExit"]
    assert isinstance(engine.failure, SystemExit)
    with pytest.raises(Unavailable, match="must be started again"):
        engine.check(check())


def test_one_answer_that_cannot_be_written_leaves_the_others(model, monkeypatch):
    heard = [[], []]
    prompts = [continuation(h, stop=stop) for h, stop in zip(heard, ((), ("zz",)), strict=True)]
    writer = Writer(model, 17)
    written = writer.written

    def fails(prompt, *arrays):
        if prompt.stop:
            raise ValueError("logits must be finite")
        return written(prompt, *arrays)

    monkeypatch.setattr(writer, "written", fails)
    list(writer.write(prompts))
    assert isinstance(heard[0][-1], Written) and heard[0][-1].finish is not None
    assert [str(error) for error in heard[1]] == ["logits must be finite"]


def test_tokens_of_text_that_is_held_back_are_held_back(model):
    """A stop string may have begun: neither its text nor its tokens are told before that is known."""
    ids = np.array([i for x in "cab" for i in model.tokenizer.encode(x, special=False)])
    told = Writer(model, 17).written(
        continuation([], max_new_tokens=9, stop=("bed",)), ids, np.zeros(len(ids))
    )
    assert told.text == "ca" and told.finish is None
    assert model.tokenizer.decode(ids[: told.num_text_tokens]) == "ca"

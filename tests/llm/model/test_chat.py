"""Chat templates: where they are found, and that one of a stranger reaches nothing and ends."""

import json

import jinja2
import pytest
from jinja2.exceptions import SecurityError

from isounc.llm.model import chat_renderer
from isounc.llm.model.chat import ChatTemplate, template_of_folder, template_of_gguf
from isounc.llm.model.chat_process import NoAnswer, RenderingProcess

HI = [[("user", "Hi")]]
TURNS = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m.content | trim }}{{ eos_token }}{% endfor %}"


def test_messages_become_a_text():
    template = ChatTemplate(
        TURNS + "{% if add_generation_prompt %}\n{{ '\\n[assistant]' }}{% endif %}",
        "m",
        "<s>",
        "</s>",
    )
    turns = [("user", " a "), ("assistant", "é{{ 1 }}"), ("user", "c")]
    first, second = template.render([turns, *HI])
    assert first == "<s>[user]a</s>[assistant]é{{ 1 }}</s>[user]c</s>\n[assistant]"
    assert second == "<s>[user]Hi</s>\n[assistant]"
    assert template.render([]) == []
    for wrong in (("robot", "Hi"), ("user", 3), ("user",)):
        with pytest.raises(ValueError, match="messages must be pairs of a role"):
            template.render([[wrong]])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ 'a' * 10**10 }}", "MemoryError|goes beyond"),
        ("{{ 'a' * 10**7 }}", "a text of 10000000 characters"),
    ],
)
def test_a_stranger_s_template_is_refused(source, words):
    with pytest.raises(ValueError, match=f"chat template of m must render.*({words})"):
        ChatTemplate(source, "m").render(HI)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("{% if %}", jinja2.TemplateSyntaxError),
        ("{{ strftime_now('%d') }}", jinja2.UndefinedError),
        ("{{ messages.append(1) }}", SecurityError),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", SecurityError),
        ("{% for a in range(10**6) %}{% endfor %}", OverflowError),
        ("{% include '/etc/passwd' %}", TypeError),
    ],
)
def test_nothing_is_in_reach(source, error):
    """In the process that has no bounds; it is the sandbox that refuses."""
    with pytest.raises(error):
        chat_renderer.render({"template": source, "conversations": [[]], "tokens": {}})


def test_a_template_without_end_is_stopped(monkeypatch, tmp_path):
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    file = tmp_path / "renderer.py"
    text = open(chat_renderer.__file__).read()
    file.write_text(text.replace("MOST_SECONDS = 20", "MOST_SECONDS = 1"))
    monkeypatch.setattr(chat_renderer, "__file__", str(file))
    with pytest.raises(ValueError, match="one that goes beyond them"):
        ChatTemplate(endless, "m").render(HI)


def test_a_process_that_ends_or_hangs_is_started_again(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        "for line in sys.stdin:\n"
        "    if 'end' in line: sys.exit(3)\n"
        "    if 'hang' in line: time.sleep(60)\n"
        "    print('{\"pid\": %d}' % __import__('os').getpid(), flush=True)\n"
    )
    process = RenderingProcess(str(program))
    first = process.ask({}, seconds=30)
    assert process.ask({}, seconds=30) == first
    with pytest.raises(NoAnswer, match="status 3"):
        process.ask({"end": 1}, seconds=30)
    second = process.ask({}, seconds=30)
    with pytest.raises(NoAnswer) as late:
        process.ask({"hang": 1}, seconds=0.2)
    assert late.value.is_late
    assert len({x["pid"] for x in (first, second, process.ask({}, seconds=30))}) == 3
    process.end()


def test_an_interrupted_request_leaves_no_answer_for_the_next(tmp_path, monkeypatch):
    """Ctrl-C in a notebook: the answer that was not waited for belongs to nobody."""
    program = tmp_path / "program.py"
    program.write_text("import sys\nfor line in sys.stdin:\n    print(line, end='', flush=True)\n")
    process = RenderingProcess(str(program))
    assert process.ask({"number": 0}, seconds=30) == {"number": 0}

    class Interrupted:
        def get(self, timeout):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(process, "_lines", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            process.ask({"number": 1}, seconds=30)
    assert process.ask({"number": 2}, seconds=30) == {"number": 2}
    process.end()


def test_where_templates_are(tmp_path):
    assert template_of_folder(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "a", "bos_token": {"content": "<s>"}}))
    assert template_of_folder(tmp_path) == ChatTemplate("a", tmp_path.name, "<s>", "")
    several = [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "c"}]
    config.write_text(json.dumps({"chat_template": several, "eos_token": "</s>"}))
    assert template_of_folder(tmp_path) == ChatTemplate("c", tmp_path.name, "", "</s>")
    (tmp_path / "chat_template.jinja").write_text("d")
    assert template_of_folder(tmp_path).source == "d"
    metadata = {
        "tokenizer.chat_template": "e", "tokenizer.ggml.tokens": ["x", "<s>"],
        "tokenizer.ggml.bos_token_id": 1,
    }  # fmt: skip
    assert template_of_gguf(metadata, "m") == ChatTemplate("e", "m", "<s>", "")
    assert template_of_gguf({}, "m") is None
    with pytest.raises(ValueError, match="bos_token_id of m must be"):
        template_of_gguf(metadata | {"tokenizer.ggml.bos_token_id": 2}, "m")
    (tmp_path / "chat_template.jinja").unlink()
    for content, words in (
        ("[]", "must be a JSON object"),
        ('{"chat_template": 3}', "chat_template in .* must be text, got 3"),
        ('{"chat_template": "a", "bos_token": 3}', "bos_token in .* must be text, got 3"),
    ):
        config.write_text(content)
        with pytest.raises(ValueError, match=words):
            template_of_folder(tmp_path)
    with pytest.raises(ValueError, match="at most 1048576 characters, got 1048577"):
        ChatTemplate("a" * (2**20 + 1), "m")

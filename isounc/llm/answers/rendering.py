"""Prompts as the texts and tokens that a model is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from isounc.llm.answers.prompts import Prompt
from isounc.llm.model.load import LanguageModel


class Given(NamedTuple):
    """A prompt as a model is given it."""

    text: str
    """The text."""
    is_chat: bool
    """Whether a template made it: it then has all special tokens, and answers begin without a space."""
    ids: list[int]
    """Its tokens."""

    def answer_ids(self, model: LanguageModel, answer: str) -> list[int]:
        """Tokens of an answer, without its leading space, as the continuation."""
        text = answer if self.is_chat else f" {answer}"
        return model.tokenizer.continuation(self.text, text, special=not self.is_chat)

    def option_ids(self, model: LanguageModel, option: str) -> list[int]:
        """Tokens of one of `Prompt.options`."""
        return model.tokenizer.continuation(self.text, option, special=not self.is_chat)


def rendered(model: LanguageModel, prompts: Sequence[Prompt]) -> list[Given]:
    """Prompts as a model is given them; conversations in the form of its chat template.

    Raises
    ------
    ValueError
        A prompt is a conversation and the model has no chat template, or that does not take it.
    """
    conversations = [prompt.messages for prompt in prompts if prompt.messages]
    if conversations and model.chat_template is None:
        raise ValueError(
            f"prompting must be few_shot or completion for {model.name}, which has no chat template "
            "(tokenizer.chat_template of a GGUF file; chat_template.jinja, or chat_template in "
            "tokenizer_config.json, of a folder), got chat"
        )
    chats = iter(model.chat_template.render(conversations) if model.chat_template else ())
    given = []
    for prompt in prompts:
        is_chat = bool(prompt.messages)
        text = next(chats) if is_chat else prompt.text
        given.append(Given(text, is_chat, model.tokenizer.encode(text, special=not is_chat)))
    return given

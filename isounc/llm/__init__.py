"""Language models and the uncertainty of their answers; loading one needs `isounc[llm]`.

Names are imported when they are first used: `Decoder` is a module of Flax, which takes a second to
import and has no part in an answer.
"""

from typing import TYPE_CHECKING

from isounc.lazy import importer

if TYPE_CHECKING:
    from isounc.llm.answers.answer import MeasuredAnswer, from_record, to_record
    from isounc.llm.answers.isotropic_scores import ScoreSettings
    from isounc.llm.answers.measure import AskedQuestion, MeasureSettings, measure
    from isounc.llm.answers.norms import AnswerNorms, answer_norms
    from isounc.llm.answers.question import Question
    from isounc.llm.answers.score_table import ScoreTable, make_score_table, score_answers
    from isounc.llm.answers.scores import Score, ScoreInfo
    from isounc.llm.answers.token_scores import TokenScores, token_scores
    from isounc.llm.model.config import DecoderConfig, Rotary
    from isounc.llm.model.decoder import Decoder
    from isounc.llm.model.generate import Generated, GenerationSettings, generate
    from isounc.llm.model.load import LanguageModel, load_model
    from isounc.llm.model.tokens import Tokenizer
    from isounc.llm.model.transformer import Cache

__all__ = [  # noqa: RUF022 (in the order of use)
    # models
    "LanguageModel",
    "load_model",
    "Tokenizer",
    "DecoderConfig",
    "Rotary",
    "Decoder",
    "Cache",
    # generation
    "GenerationSettings",
    "Generated",
    "generate",
    # answers
    "AnswerNorms",
    "answer_norms",
    "TokenScores",
    "token_scores",
    "Question",
    "AskedQuestion",
    "MeasureSettings",
    "MeasuredAnswer",
    "measure",
    "to_record",
    "from_record",
    # scores
    "Score",
    "ScoreInfo",
    "ScoreSettings",
    "ScoreTable",
    "make_score_table",
    "score_answers",
]

_HOMES = {
    "isounc.llm.answers.answer": ("MeasuredAnswer", "from_record", "to_record"),
    "isounc.llm.answers.isotropic_scores": ("ScoreSettings",),
    "isounc.llm.answers.measure": ("AskedQuestion", "MeasureSettings", "measure"),
    "isounc.llm.answers.norms": ("AnswerNorms", "answer_norms"),
    "isounc.llm.answers.question": ("Question",),
    "isounc.llm.answers.score_table": ("ScoreTable", "make_score_table", "score_answers"),
    "isounc.llm.answers.scores": ("Score", "ScoreInfo"),
    "isounc.llm.answers.token_scores": ("TokenScores", "token_scores"),
    "isounc.llm.model.config": ("DecoderConfig", "Rotary"),
    "isounc.llm.model.decoder": ("Decoder",),
    "isounc.llm.model.generate": ("Generated", "GenerationSettings", "generate"),
    "isounc.llm.model.load": ("LanguageModel", "load_model"),
    "isounc.llm.model.tokens": ("Tokenizer",),
    "isounc.llm.model.transformer": ("Cache",),
}

if not TYPE_CHECKING:
    __getattr__ = importer(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

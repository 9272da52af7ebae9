"""Language models: decoders, checkpoints, tokenizers and generation. Needs the extra ``isounc[llm]`` to load any."""

from isounc.llm.model.config import DecoderConfig, Rotary
from isounc.llm.model.decoder import Cache, Decoder
from isounc.llm.model.generate import Generated, GenerationSettings, generate
from isounc.llm.model.load import LanguageModel, load_model
from isounc.llm.model.tokens import Tokenizer

__all__ = [
    "Cache",
    "Decoder",
    "DecoderConfig",
    "Generated",
    "GenerationSettings",
    "LanguageModel",
    "Rotary",
    "Tokenizer",
    "generate",
    "load_model",
]

"""Language models: decoders, checkpoints, tokenizers and generation. Needs the extra ``isounc[llm]`` to load any."""

from isounc.llm.checkpoint import LanguageModel, load_model
from isounc.llm.config import DecoderConfig, Rotary
from isounc.llm.decoder import Cache, Decoder
from isounc.llm.generation import Generated, GenerationSettings, generate
from isounc.llm.tokens import Tokenizer

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

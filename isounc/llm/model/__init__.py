"""Decoders, their checkpoints and tokenizers, and generation."""

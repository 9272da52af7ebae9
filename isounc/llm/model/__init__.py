"""Decoders, their weights in files, tokenizers, and generation."""

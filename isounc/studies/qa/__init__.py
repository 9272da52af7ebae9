"""Question answering: which uncertainty of a language model tells its wrong answers."""

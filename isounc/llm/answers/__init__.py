"""Answers of a language model: their probabilities, gradient norms, scores and judgements."""

"""Language models: questions and their judging, prompts, and what predicts a wrong answer."""

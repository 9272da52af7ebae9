"""A service in front of a language model: answers, their uncertainty, and a guard's decision."""

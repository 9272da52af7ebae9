"""World: a language-model world whose truth is known, and scores that must tell wrong answers in it."""

"""Learning from an old model with another tokenizer; docs/tokenizers.md explains it.

`same_tokenizer` finds whether it has one, `chunks` cuts a text where both do, `surfaces` and `translations` put its
tokens into the student's, `old_side` and `old_teachers` keep what it says, and `comparisons` are the objectives.
"""

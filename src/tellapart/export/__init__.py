"""Writing a model in other formats, and proving that what was written gives the same answers.

Starts from the artifact; knows nothing of training, or of where images come from.
"""

"""Writing a model in other formats, and proving that the files give the same answers.

Starts from the artifact; knows nothing of training, or of where images come from.
"""

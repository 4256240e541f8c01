"""Smaller and faster models from a trained one: pruning, quantisation, and the table that compares them."""

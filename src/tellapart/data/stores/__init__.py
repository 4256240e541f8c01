"""Decoded pixels: how they are made, by whom, where they lie, and how much room they take."""

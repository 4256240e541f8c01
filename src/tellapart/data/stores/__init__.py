"""Decoded pixels: how they are made, by which workers, where they are kept, and how much space they take."""

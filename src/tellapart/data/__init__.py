"""Images as data: where they are, how they are split, whether they are sound, and how they reach a batch."""

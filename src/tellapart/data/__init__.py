"""Images as data: where they are, how they are split, what is wrong with them, and how they become batches."""

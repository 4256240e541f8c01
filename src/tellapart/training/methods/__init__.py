"""Methods that a run may add to plain training, each in a file of its own."""

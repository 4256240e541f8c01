"""From the user's data to the table of samples: readers of every kind, and how splits are made."""

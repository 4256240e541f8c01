"""From what a person names as data to the table of samples: readers of every kind, and how splits are dealt."""

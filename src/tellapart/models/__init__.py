"""Networks: by name, with or without weights, and the parts of them that train."""

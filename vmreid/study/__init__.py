"""A study: which runs it lists, which of them are missing, and how they are made, piece by piece."""

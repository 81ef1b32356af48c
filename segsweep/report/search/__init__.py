"""The page of a search, read from its study alone."""

"""In which units a flagged example sits: the search, and everything that its claim is checked by."""

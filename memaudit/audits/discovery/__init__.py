"""A whole training set ranked without a list: what each label is worth to everything but the example itself."""

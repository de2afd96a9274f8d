"""RULER (arXiv 2404.06654): samples of any length for any tokenizer, scored as is official."""

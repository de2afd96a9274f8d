"""RULER (arXiv 2404.06654): samples of any length for any tokenizer, with the official scores."""

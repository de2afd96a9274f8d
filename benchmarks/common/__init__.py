"""What the benchmarks share: command-line options, rows of files, timing and tokenizers."""

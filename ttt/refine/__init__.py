"""The REFINE algorithm (arXiv 2602.16704), one file for each of its parts."""

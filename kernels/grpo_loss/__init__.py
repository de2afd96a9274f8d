"""The policy-gradient terms of the REFINE loss (arXiv 2602.16704, section 3.4)."""

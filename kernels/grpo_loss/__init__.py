"""The policy-gradient terms of the REFINE loss: GRPO surrogate and KL (arXiv 2602.16704, 3.4)."""

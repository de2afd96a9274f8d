"""The delta rule with a memory that decays (arXiv 2412.06464; by channel: arXiv 2510.26692)."""

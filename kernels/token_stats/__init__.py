"""What the LM head says of each token: log-probability of a target, and entropy."""

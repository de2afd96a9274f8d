"""From texts to the token ids of a prompt."""

"""How close rollouts came to the document's own continuation, and what that is worth."""

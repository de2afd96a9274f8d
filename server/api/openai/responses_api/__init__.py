"""OpenAI's Responses API: one answer to a list of input items."""

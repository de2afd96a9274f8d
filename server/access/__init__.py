"""API keys, owners and their quotas."""

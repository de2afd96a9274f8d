"""Clients of the server. They speak HTTP only and import nothing else of ours."""

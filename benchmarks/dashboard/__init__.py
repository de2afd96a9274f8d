"""The Grafana dashboard: its panels, and what their queries return of a server under load."""

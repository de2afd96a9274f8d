"""How a fleet of replicas behaves: a measured replay, and a simulation that is fed by it."""

"""The control plane as one process: puts store, API, controllers and the agents' link together."""

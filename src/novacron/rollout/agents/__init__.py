"""Rollouts of agents: a new version comes to the nodes in waves, and goes back by itself."""

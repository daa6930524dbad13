"""Hosts, hypervisors, a network and time that are simulated, for the real workers, controllers and store to run in."""

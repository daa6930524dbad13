"""Replicas that lie on this node: the points of each, as layers of its VM's disk."""

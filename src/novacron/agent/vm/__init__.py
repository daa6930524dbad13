"""One VM on this node."""

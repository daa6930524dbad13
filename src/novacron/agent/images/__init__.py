"""Images on this node: how they come, go, and end."""

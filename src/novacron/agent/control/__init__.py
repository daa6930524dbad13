"""What the agent and its control plane, and other nodes, say to each other."""

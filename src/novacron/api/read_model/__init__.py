"""What reads are answered from: memory, fed by the change feed."""

"""What an agent measures and reports."""

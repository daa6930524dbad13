"""The audit log as a hash chain: its format, its signed heads, and how both are verified. Pure, for server and CLI."""

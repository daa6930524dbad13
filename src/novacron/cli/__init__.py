"""The commands, built on the SDK only."""

"""Metrics, traces, logs, each declared once."""

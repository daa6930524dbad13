"""Forecasts of load and of migrations, for the server. Agents import nothing of this: it needs numpy."""

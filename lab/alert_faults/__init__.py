"""Faults that alerts are for, injected on a platform of the lab until a runbook has ended them."""

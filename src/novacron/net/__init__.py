"""Interfaces of VMs: taps on the host's bridge."""

"""What exists: specs, statuses, state machines, errors. Pure: no I/O, no clock, no framework."""

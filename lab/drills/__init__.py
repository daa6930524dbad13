"""Drills of the lab: a fault on real parts, what recovers, and how long that took (``script/drill``)."""

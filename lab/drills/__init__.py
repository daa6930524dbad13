"""Drills of the lab: a fault on real parts, what recovers from it, and how long that took. ``script/drill`` runs them."""

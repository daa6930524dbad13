"""How a new version of the server comes and goes behind HAProxy: strategies, gates, journal, ways back."""

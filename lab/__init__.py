"""Hosts as network namespaces, emulated WANs, and the platform on them: for the demo, tests and benchmarks."""

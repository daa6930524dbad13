"""Random histories of a few VMs on three hosts with real QEMUs, agents, server and PostgreSQL, each made from a seed.

After each, the platform comes to rest, and then every VM runs exactly once or, where it should not, not at all, none is
lost, and nothing is left that no VM accounts for. The seed decides what is done, and when; how the processes take turns
is up to the machine, so a seed that has found a defect may have to be run a few times.
"""

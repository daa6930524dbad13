"""Backups: repositories in restic's format (version 2), with a writer and a reader made for disks of VMs.

``Repository`` opens one, in a ``Storage``. ``disks`` writes and reads disks. What is written, anybody's restic reads.
Format: https://restic.readthedocs.io/en/stable/100_references.html (repository format, version 2).
"""

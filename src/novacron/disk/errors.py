"""What disks and images are refused for."""


class Unacceptable(Exception):
    """The file is no disk that can be taken: says why."""

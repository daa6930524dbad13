"""What disks and images are refused for."""

from novacron.model.waiting import WaitCode


class Unacceptable(Exception):
    """The file is no disk that can be taken: says why, and with which code."""

    def __init__(self, message: str, code: WaitCode = WaitCode.FILE_REFUSED) -> None:
        super().__init__(message)
        self.code = code

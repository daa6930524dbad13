"""The codec: how a stream of bytes becomes smaller, and itself again.

One zstd stream over the whole session, with a window so long that a page which occurs again far away costs a few
bytes. Each piece is flushed, so that nothing of what went in waits for what comes next.
"""

from __future__ import annotations

import zstandard

from novacron.dwcp.frames import PAYLOAD_BYTES_MAX, ProtocolError

NAME = "zstd-long"
LEVEL = 3
WINDOW_LOG = 27
"""log2 of the window in bytes: 128 MiB, held by each end for as long as a session lasts."""


class Encoder:
    """Compresses pieces of one stream in order. Releases the GIL while it works."""

    def __init__(self, level: int = LEVEL) -> None:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level, window_log=WINDOW_LOG, enable_ldm=True, write_content_size=False
        )
        self._stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()

    def encode(self, raw: bytes) -> bytes:
        """Return the compressed form of ``raw``, complete: the peer can decode it without waiting."""
        return self._stream.compress(raw) + self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


class Decoder:
    """Decompresses what an Encoder made, in order."""

    def __init__(self) -> None:
        self._stream = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG).decompressobj()

    def decode(self, data: bytes) -> bytes:
        """Return the raw bytes of one piece. Raises ProtocolError for what is no such stream."""
        if len(data) > PAYLOAD_BYTES_MAX:
            raise ProtocolError(f"a piece of {len(data)} bytes, at most {PAYLOAD_BYTES_MAX} are allowed")
        try:
            return self._stream.decompress(data)
        except zstandard.ZstdError as error:
            raise ProtocolError(f"the stream can't be decompressed: {error}") from error

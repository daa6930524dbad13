"""What server and agents say to each other: message types, nothing else.

Messages are MessagePack maps with a ``type`` field, one to a WebSocket message. None is needed for correctness: each
says how things are, may be repeated, and may be lost; the next connection begins with everything.
"""

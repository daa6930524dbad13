"""Bytes across a WAN: frames, codec, streams, sessions. Knows nothing of virtual machines.

A *session* carries one ordered stream of bytes from one node to another: the sender's codec turns it into frames with
consecutive numbers, which share several TLS connections; the receiver puts them in order again. The wire format is in
docs/dwcp.md.
"""

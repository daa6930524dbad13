"""The calls of ``Client``, made of those of ``novacron.client.aio`` by ``script/generate``; only transport.py is
written by hand."""

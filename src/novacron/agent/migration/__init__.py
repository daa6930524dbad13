"""Migrations. It may import ``vm``, ``host`` and nothing else of the agent.

The source         ``source`` (what is sent and promised), ``source_stream``, ``pre_copy`` (when the guest stops)
The target         ``target`` (what is received and promised), ``target_stream``
Both               ``disk_mirror``, ``post_copy`` (memory that follows its guest), ``services`` (what workers share)
Sending less       ``known_pages``, ``checkpoint_index``
Before it          ``estimate``, ``path_probe``
"""

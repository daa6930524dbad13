"""Migrations. It may import ``vm``, ``host`` and nothing else of the agent.

The source         ``source`` (what the server asks for), ``outgoing`` (one migration), ``phases`` (its transitions),
                   ``session_opening``, ``source_stream``, ``pre_copy`` (when the guest stops)
The target         ``target`` (what the server asks for), ``target_stream``, ``direct_placement`` (memory that is
                   written past QEMU)
Both               ``transport`` (what they need of a hypervisor's memory), ``disk_mirror``, ``post_copy`` (memory that
                   follows its guest), ``services`` (what workers share)
Sending less       ``known_pages``, ``checkpoint_index``
Before it          ``estimate``, ``path_probe``
"""

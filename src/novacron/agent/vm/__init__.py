"""One VM on this node. It may import ``host`` and nothing else of the agent.

What is shared     ``context`` (what all parts of a VM's worker take), ``tenant``, ``directory`` (files), ``journal``
Running it         ``reconciler`` (spec to reality), ``power`` (the decision), ``start_queue``, ``retries``,
                   ``hypervisor`` (what a worker needs of one), ``machine`` (QEMU), ``launch`` (its configuration),
                   ``interfaces``, ``nvram``, ``tpm``, ``devices`` (volumes and limits)
Its disk           ``clone_reconciler``, ``clone_disk``, ``snapshots``
Its guest          ``guest_agent``, ``console``, ``console_log``, ``firmware_state``
"""

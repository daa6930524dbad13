"""How replicas of VMs' disks come to other nodes: in rounds, sent by the node that owns the VM."""

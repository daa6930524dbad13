"""The database in several places: PostgreSQL under Patroni, with etcd; see
docs/adr/0066-the-database-in-three-places.md.

``settings``: what a cluster and a member are · ``patroni_config``: the same for Patroni · ``files``: where that is
kept · ``etcd``: what the members have agreed on · ``checks``: before anything is changed · ``process``: Patroni
itself · ``steps``: init and join · ``view``: what members say · ``health``: what is wrong with it, and what to do ·
``moves``: switch and failover.
"""

"""``novacron setup``: makes a host with the Debian packages a server or a node, and goes on where it was interrupted.

``plan`` decides, from what a host has (``host``) and what is wanted, which changes are left to make. Each change is one
step that is whole or not made, so a plan that was cut off is made again from what is there.
"""

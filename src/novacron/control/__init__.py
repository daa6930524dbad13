"""What makes it so: one module per controller.

Each controller has a ``step`` that looks at the whole store, compares, and acts through transactions that check their
own premises; ``loop`` runs it on one process at a time. A step may be killed anywhere and repeated at will.
"""

"""Which users are online.

lease    this node's lease, the leases of the other nodes, sessions that have just ended
watches  the users that local sessions watch
"""

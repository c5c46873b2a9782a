"""Which users are online.

lease        this node's lease, and the leases of the other gateways
departures   devices whose session has ended: marked away after a grace
watches      the users that local sessions watch
redis_clock  Redis's clock, carried on between two answers
"""

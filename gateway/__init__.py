"""The edge: WebSockets in, events out. Holds nothing that outlives a connection.

app             puts the parts together: Starlette routes and lifespan
wsprotocol      one WebSocket connection: upgrade through ASGI, then callbacks
wsframes        RFC 6455 frames and permessage-deflate, no I/O
auth            token to identity
session         one connection's states, limits and what it has
commands        command to handler table
hub             channel to local sessions: frame once, write to all
catchup         feeds sessions that are behind from the log
subscriptions   which channels this node needs, and what comes from them
lease           node lease, heartbeat wheel, audit round
drain           paced shutdown
"""

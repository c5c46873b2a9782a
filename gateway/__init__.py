"""The edge: WebSockets in, events out. Holds nothing that outlives a connection.

app             puts the parts together: Starlette routes and lifespan
wsprotocol      one WebSocket connection: callbacks between transport and session
wsupgrade       how it begins: the upgrade request and the ASGI application's answer
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

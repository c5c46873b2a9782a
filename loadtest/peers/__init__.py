"""Linnet compared with popular libraries under the same load: `python -m loadtest.peers`, behind `make bench-peers`.

Each library runs two nodes over a Valkey of its own. All are started at once and loaded one at a time: each round loads
every side in turn, phase by phase, so that all meet the same machine. The result is a table of the cost of a message,
as a multiple of Linnet's. The libraries are configured as in their documentation and do what its examples do: join a
room named as the conversation, emit to the room, acknowledge if they can. The libraries do not store, order or repeat
messages; Linnet does all three at the price in the table. Centrifugo, a server, takes part twice: with its history,
recovery and positioning, which is what compares with Linnet, and without them.

clients            connections to the libraries, as cheap as Linnet's client
deployment         processes of the libraries
load               the load process, round by round
table              ratios of what was measured
__main__           the command

socket_io.js       Socket.IO with @socket.io/redis-adapter; package.json and its lock name the versions
python_socketio    python-socketio with AsyncRedisManager
django_channels    Django Channels with channels_redis

centrifugo.json    the configuration of Centrifugo: a namespace with a history, and one without

The two in Python run in a .venv of their own (deploy/requirements-peers.txt); no module imports them. Centrifugo is
built if Go is there, and left out if not.
"""

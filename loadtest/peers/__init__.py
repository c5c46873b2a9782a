"""What users pick today, under the same load as Linnet: `python -m loadtest.peers`, behind `make bench-peers`.

Two nodes of each over a Valkey of its own, all up at once, one of them loaded at a time: each round goes through all
sides phase by phase, so that what the machine does meanwhile happens to all. It prints one table of what a message
costs, as a multiple of what it costs Linnet. The peers are as their documentation has them and do what its examples do:
join a room named as the conversation, emit to the room, ack where they have acks. None of them keeps, orders or
repeats anything, and Linnet does all three for the price in the table.

clients            their connections, as cheap as Linnet's
deployment         their processes
load               what the load process does, round by round
table              ratios, from what was measured
__main__           the command

socket_io.js       Socket.IO with @socket.io/redis-adapter; package.json and its lock say which
python_socketio    python-socketio with AsyncRedisManager
django_channels    Django Channels with channels_redis

The last two run in a .venv of their own (deploy/requirements-peers.txt) and are imported by nobody.
"""

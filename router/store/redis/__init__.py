"""Connections to Redis or Valkey; the files of the domain build on `client`.

connection      one connection: dial, greet, read, and dial again after a loss
sentinel        finds the primary
pipeline        calls gathered into few writes, replies by callback
pubsub          sharded pub/sub: batches of messages, subscriptions that restore themselves
slots           which slot of a cluster a key or channel is in
cluster         a cluster's URL and its map; pure
routing         calls to a cluster: a connection for each primary, holds over redirects
map_follower    asks for the map of a cluster, and again when it may have changed
cluster_client  the client of a cluster: has a client of every server, and checks all of them
cluster_bus     pub/sub of a cluster: subscriptions follow their slots
choose          one server or a cluster, chosen once at start
functions       `store/functions/*.lua` as one source, whose name contains its hash
client          functions, commands and publishing; the checks at start
fitness         whether the server keeps what the durability level promises
rights          the rights of Linnet's user on the server
scans           walks over all keys of one pattern
decoding        values that cannot be decoded
"""

"""Connections to Redis or Valkey; the files of the domain build on `client`.

connection  one connection: dial, greet, read, lose, dial again
sentinel    finds the primary
pipeline    calls gathered into few writes, replies by callback
pubsub      sharded pub/sub: batches of messages, subscriptions that restore themselves
functions   `store/functions/*.lua` as one source, named after its hash
client      functions, commands and publishing; the checks at start
"""

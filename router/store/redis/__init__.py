"""Connections to Redis or Valkey; the files of the domain build on `client`.

connection  one connection: dial, greet, read, and dial again after a loss
sentinel    finds the primary
pipeline    calls gathered into few writes, replies by callback
pubsub      sharded pub/sub: batches of messages, subscriptions that restore themselves
functions   `store/functions/*.lua` as one source, whose name contains its hash
client      functions, commands and publishing; the checks at start
fitness     whether the server keeps what the durability level promises
rights      the rights of Linnet's user on the server
decoding    values that cannot be decoded
"""

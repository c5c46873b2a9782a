-- probe: find the commands of our functions that the server's ACL refuses to this user.
-- KEYS  a scratch key
-- ARGV  a channel without subscribers
-- Returns {command, the server's error, …}, empty if all are allowed; the scratch key is deleted afterwards
--
-- Keeps true: every command of every function is here (a test compares). Other errors (no memory) do not count.

local function probe(keys, a)
  local k, refused = keys[1], {}
  local function try(command, ...)
    local reply = redis.pcall(command, ...)
    local said = type(reply) == 'table' and reply.err
    if said and (string.find(said, 'permission', 1, true) or string.find(said, 'The user executing', 1, true)) then
      refused[#refused + 1], refused[#refused + 2] = command, said
    end
  end
  try('EXISTS', k)
  try('SET', k, '')
  try('GET', k)
  try('UNLINK', k)
  try('HSET', k, 'f', 1)
  try('HINCRBY', k, 'f', 1)
  try('HGET', k, 'f')
  try('HMGET', k, 'f')
  try('HGETALL', k)
  try('HKEYS', k)
  try('HLEN', k)
  try('HEXISTS', k, 'f')
  try('HSTRLEN', k, 'f')
  try('HDEL', k, 'f')
  redis.pcall('UNLINK', k)
  try('XADD', k, 1, 'e', '')
  try('XLEN', k)
  try('XRANGE', k, '-', '+')
  try('XREVRANGE', k, '+', '-')
  try('XINFO', 'STREAM', k)
  try('XTRIM', k, 'MINID', 1)
  try('XDEL', k, 1)
  redis.pcall('UNLINK', k)
  try('ZADD', k, 1, 'm')
  try('ZCARD', k)
  try('ZCOUNT', k, '-inf', '+inf')
  try('ZSCORE', k, 'm')
  try('ZRANGE', k, 0, -1)
  try('ZREVRANGE', k, 0, -1)
  try('ZRANGEBYSCORE', k, '-inf', '+inf')
  try('ZREVRANGEBYSCORE', k, '+inf', '-inf')
  try('ZREM', k, 'm')
  redis.pcall('UNLINK', k)
  try('INFO', 'replication')
  try('TIME')
  try('SPUBLISH', a[1], '')
  return refused
end

register('probe', probe, {'allow-oom'})

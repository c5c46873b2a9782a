-- deployment: what a Redis database says of the deployment that it holds; an empty database becomes the caller's.
-- KEYS  deployment
-- ARGV  partitions format id fingerprint            (format and id: those of a deployment that begins now)
-- Returns {partitions, format, id, fingerprint}
-- Keeps true:
-- - Two processes that start at once on an empty database agree: one makes the hash, the other reads it.
-- - A hash that an earlier release has made keeps its format, and gets an id, which its channels take when it is moved.
-- - A fingerprint is written where there is none, never over another.

local function deployment(keys, a)
  local h = redis.call('HMGET', keys[1], 'partitions', 'format', 'id', 'fingerprint')
  if not h[1] then redis.call('HSET', keys[1], 'partitions', a[1], 'format', h[2] or a[2]) end
  if not h[3] then redis.call('HSET', keys[1], 'id', a[3]) end
  if not h[4] then redis.call('HSET', keys[1], 'fingerprint', a[4]) end
  return redis.call('HMGET', keys[1], 'partitions', 'format', 'id', 'fingerprint')
end

register('deployment', deployment, {'allow-oom'})

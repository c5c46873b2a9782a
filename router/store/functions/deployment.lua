-- deployment: read to which deployment a Redis database belongs; an empty database becomes the caller's.
-- KEYS  deployment
-- ARGV  partitions format id fingerprint            (format and id: those of a deployment that begins now)
-- Returns {partitions, format, id, fingerprint}
--
-- Keeps true:
-- - If two processes start at the same time on an empty database, they agree: one writes the hash, the other reads it.
-- - A hash that an earlier release has written keeps its format. It gets an id, which its channels use once it is moved.
-- - A fingerprint is written only if there is none.

local function deployment(keys, a)
  local h = redis.call('HMGET', keys[1], 'partitions', 'format', 'id', 'fingerprint')
  if not h[1] then redis.call('HSET', keys[1], 'partitions', a[1], 'format', h[2] or a[2]) end
  if not h[3] then redis.call('HSET', keys[1], 'id', a[3]) end
  if not h[4] then redis.call('HSET', keys[1], 'fingerprint', a[4]) end
  return redis.call('HMGET', keys[1], 'partitions', 'format', 'id', 'fingerprint')
end

register('deployment', deployment, {'allow-oom'})

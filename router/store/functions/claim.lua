-- claim: due conversations of a partition, for the time of a lease.
-- KEYS  dirty
-- ARGV  limit lease_ms
-- Returns {conv ...}
--
-- Keeps true: what is claimed is due again when the lease runs out, so a router that dies loses nothing. `~conv` is the
-- mark of a quiet log whose oldest event is due to be trimmed; it becomes an ordinary claim, and `done` sets it anew.

local function claim(k, a)
  local now = math.floor(now_us() / 1000)
  local convs = {}
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', k[1], '-inf', now, 'LIMIT', 0, a[1])) do
    if string.sub(name, 1, 1) == '~' then
      redis.call('ZREM', k[1], name)
      name = string.sub(name, 2)
      if redis.call('ZSCORE', k[1], name) then name = nil end
    end
    if name then
      redis.call('ZADD', k[1], now + a[2], name)
      convs[#convs + 1] = name
    end
  end
  return convs
end

register('claim', claim, {'allow-oom'})

-- done: all events up to a seq are delivered.
-- KEYS  conv log dirty
-- ARGV  conv upto retention_events retention_age_ms
-- Returns {routed, head, floor, trimmed}; NOTFOUND (removed ones keep their lease: their end is `forget`)
--
-- Keeps true:
-- - `routed` never falls; a conversation whose head is beyond it stays marked, due now.
-- - Trims events beyond the number kept or the age, oldest first, never one above `routed`, and announces it: a cursor
--   below `floor` has missed something.
-- - A log that has events is marked `~conv` for when its oldest is too old: quiet ones are trimmed, too.

local CHUNK = 128                  -- entries looked at in one call
local GRACE_MS = 3600000           -- collects what comes of age in the same hour

local function done(k, a)
  local conv, keep, age = a[1], tonumber(a[3]), tonumber(a[4])
  local h = redis.call('HMGET', k[1], 'm', 'routed', 'floor', 'gone')
  if not h[1] then
    if not h[4] then redis.call('ZREM', k[3], conv, '~' .. conv) end
    return fail('NOTFOUND')
  end
  local now, head = math.floor(now_us() / 1000), struct.unpack('>I8', h[1])
  local routed = math.max(tonumber(h[2] or 0), math.min(tonumber(a[2]), head))
  local floor, trimmed, next_at = tonumber(h[3] or 0), 0, nil

  local excess = redis.call('XLEN', k[2]) - keep
  local upto, count = string.format('%.0f', routed), 1
  local entries = redis.call('XRANGE', k[2], '-', upto, 'COUNT', 1)
  if entries[1] and (excess > 0 or at_of(entries[1][2][2]) < now - age) then
    count = CHUNK
    entries = redis.call('XRANGE', k[2], '-', upto, 'COUNT', count)
  end
  for i, entry in ipairs(entries) do
    local event = entry[2][2]
    if i > excess and at_of(event) >= now - age then
      next_at = at_of(event) + age + GRACE_MS
      break
    end
    trimmed, floor = i, seq_of(event)
  end
  if trimmed > 0 then redis.call('XTRIM', k[2], 'MINID', string.format('%.0f', floor + 1)) end
  if not next_at and redis.call('XLEN', k[2]) > 0 then next_at = trimmed == count and now or now + age end

  redis.call('HSET', k[1], 'routed', upto, 'floor', string.format('%.0f', floor))
  if next_at then redis.call('ZADD', k[3], next_at, '~' .. conv) else redis.call('ZREM', k[3], '~' .. conv) end
  if routed == head then redis.call('ZREM', k[3], conv) else redis.call('ZADD', k[3], now, conv) end
  return {routed, head, floor, trimmed}
end

register('done', done, {'allow-oom'})

-- tus_advance: add a part that is in the store to a resumable upload.
-- KEYS  tus due
-- ARGV  id token offset size object lease_ms keep_s    (offset: where the part begins)
-- Returns {offset, ends} after it; LOCKED if another token has the lock; NOTFOUND
--
-- Keeps true: parts follow each other without a gap. An object is due to be deleted until it is a part.

local function tus_advance(k, a)
  local h = redis.call('HMGET', k[1], 'offset', 'lock', 'parts')
  if not h[1] then return fail('NOTFOUND') end
  if h[2] ~= a[2] or h[1] ~= a[3] then return fail('LOCKED') end
  local now = now_us() / 1000
  local offset, ends = tonumber(h[1]) + tonumber(a[4]), math.floor(now / 1000) + tonumber(a[7])
  redis.call('HSET', k[1], 'offset', string.format('%.0f', offset), 'ends', ends, 'until',
    string.format('%.0f', now + tonumber(a[6])), 'parts', h[3] .. a[5] .. ' ')
  redis.call('ZREM', k[2], '!' .. a[5])
  due_at(k[2], '+' .. a[1], ends)
  return {offset, ends}
end

register('tus_advance', tus_advance)

-- tus_lock: read a resumable upload, and lock it against other writers.
-- KEYS  tus
-- ARGV  user token lease_ms                            (lease_ms 0: only read; -1: give the lock back)
-- Returns {length, offset, ends, meta, parts, result}; NOTFOUND LOCKED
--
-- Keeps true: one token at a time has the lock. The lock of a router that died ends with its lease.

local function tus_lock(k, a)
  local h = redis.call('HMGET', k[1], 'user', 'length', 'offset', 'ends', 'meta', 'parts', 'result', 'lock', 'until')
  if h[1] ~= a[1] then return fail('NOTFOUND') end
  local now, lease = now_us() / 1000, tonumber(a[3])
  if lease < 0 then
    if h[8] == a[2] then redis.call('HDEL', k[1], 'lock', 'until') end
  elseif lease > 0 then
    local ends = tonumber(h[9] or 0)
    if h[8] and h[8] ~= a[2] and ends > now and not of_another_clock(ends, now) then return fail('LOCKED') end
    redis.call('HSET', k[1], 'lock', a[2], 'until', string.format('%.0f', now + lease))
  end
  return {tonumber(h[2]), tonumber(h[3]), tonumber(h[4]), h[5], h[6], h[7] or ''}
end

register('tus_lock', tus_lock)

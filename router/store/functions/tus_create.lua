-- tus_create: begin a resumable upload.
-- KEYS  tus due
-- ARGV  id user length meta keep_s                     (keep_s: how long it is kept after its last byte)
-- Returns the time (s) at which it ends

local function tus_create(k, a)
  local ends = now_s() + tonumber(a[5])
  redis.call('HSET', k[1], 'user', a[2], 'length', a[3], 'meta', a[4], 'offset', 0, 'ends', ends, 'parts', '')
  due_at(k[2], '+' .. a[1], ends)
  return ends
end

register('tus_create', tus_create)

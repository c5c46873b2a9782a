-- erase_reports: erase the copies of messages in reports that were closed long ago.
-- KEYS  report closed
-- ARGV  age_ms
-- Returns how many were erased
--
-- Keeps true: one call erases a bounded number; the next round erases the others.

local AT_ONCE = 100

local function erase_reports(k, a)
  local before = math.floor(now_us() / 1000) - tonumber(a[1])
  local names = redis.call('ZRANGEBYSCORE', k[2], '-inf', before, 'LIMIT', 0, AT_ONCE)
  for _, name in ipairs(names) do
    local packed = redis.call('HGET', k[1], name)
    if packed then
      local row = cmsgpack.unpack(packed)
      row.event = nil
      redis.call('HSET', k[1], name, cmsgpack.pack(row))
    end
    redis.call('ZREM', k[2], name)
  end
  return #names
end

register('erase_reports', erase_reports, {'allow-oom'})

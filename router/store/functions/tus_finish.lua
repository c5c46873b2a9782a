-- tus_finish: record the file that a complete resumable upload has become; its parts are due to be deleted.
-- KEYS  tus due
-- ARGV  id result keep_s
-- Returns 1; NOTFOUND
--
-- Keeps true: the result stays, for a client that lost the last answer and asks again.

local function tus_finish(k, a)
  local parts = redis.call('HGET', k[1], 'parts')
  if not parts then return fail('NOTFOUND') end
  local now = now_s()
  for object in string.gmatch(parts, '%S+') do due_at(k[2], '!' .. object, now) end
  redis.call('HSET', k[1], 'parts', '', 'result', a[2], 'ends', now + tonumber(a[3]))
  redis.call('HDEL', k[1], 'meta')
  due_at(k[2], '+' .. a[1], now + tonumber(a[3]))
  return 1
end

register('tus_finish', tus_finish)

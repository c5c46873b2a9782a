-- upload_begin: decide whether a user may upload now, and count the upload.
-- KEYS  uploads uploading user
-- ARGV  id lease_ms at_once quota size cost(µs) burst(µs)   (size: the bytes to come, 0 if that is not known)
-- Returns 1; ATONCE QUOTA RATE <µs> NOTFOUND
--
-- Keeps true: an upload that is refused does not count. An upload whose router died stops counting when its lease ends.

local function upload_begin(k, a)
  if not alive(k[3]) then return fail('NOTFOUND') end
  local now = now_ms()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', k[2], '-inf', now)) do redis.call('ZREM', k[2], id) end
  if redis.call('ZCARD', k[2]) >= tonumber(a[3]) then return fail('ATONCE') end
  if tonumber(redis.call('HGET', k[1], 'bytes') or 0) + tonumber(a[5]) > tonumber(a[4]) then return fail('QUOTA') end
  local refusal = take_from_rate(k[3], 'uploads', tonumber(a[6]), tonumber(a[7]))
  if refusal then return refusal end
  redis.call('ZADD', k[2], now + tonumber(a[2]), a[1])
  return 1
end

register('upload_begin', upload_begin)

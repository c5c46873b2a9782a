-- upload_forget: remove a file from the uploads of its user, because the file is about to be forgotten.
-- KEYS  uploads
-- ARGV  hash age_ms
-- Returns 1 if it was removed, else 0
--
-- Keeps true: an upload younger than age_ms stays, and so does its file.

local function upload_forget(k, a)
  local row = redis.call('HGET', k[1], a[1])
  if not row then return 0 end
  local at, size = struct.unpack('>I8I8', row)
  if at > now_ms() - tonumber(a[2]) then return 0 end
  local left = math.max(tonumber(redis.call('HGET', k[1], 'bytes') or 0) - size, 0)
  redis.call('HDEL', k[1], a[1])
  if redis.call('HLEN', k[1]) <= 1 then redis.call('UNLINK', k[1]) else redis.call('HSET', k[1], 'bytes', digits(left)) end
  return 1
end

register('upload_forget', upload_forget, {'allow-oom'})

-- upload_own: record that a user has uploaded a file.
-- KEYS  uploads user
-- ARGV  hash size row quota                            (row: the user's description of the file)
-- Returns the time (ms); FILEQUOTA; NOTFOUND if the account was deleted
--
-- Keeps true: `bytes` is the sum over the user's files, each of them once. A row is at (ms), size, then `row`.
-- A deleted user gets no row, however long the bytes were on their way.

local function upload_own(k, a)
  if redis.call('HEXISTS', k[2], 'deleted') == 1 then return fail('NOTFOUND') end
  local was, total = redis.call('HGET', k[1], a[1]), tonumber(redis.call('HGET', k[1], 'bytes') or 0)
  if was then
    local _, size = struct.unpack('>I8I8', was)
    total = total - size
  end
  total = total + tonumber(a[2])
  if total > tonumber(a[4]) then return fail('FILEQUOTA') end
  local now = now_ms()
  redis.call('HSET', k[1], a[1], struct.pack('>I8I8', now, tonumber(a[2])) .. a[3], 'bytes', digits(total))
  return now
end

register('upload_own', upload_own)

-- file_stored: record that the bytes of a file are in the store.
-- KEYS  file due
-- ARGV  name gen size previews picture user keep_s
--       keep_s: how long a file without references is kept
-- Returns 1, or 0 if the bytes were stored before; LATER if the file was removed meanwhile; REJECTED
--
-- Keeps true:
-- - Only objects of the record's own generation count as stored.
-- - The same bytes may be stored as a picture by one user and as a file by another: what is known of the picture stays.

local function file_stored(k, a)
  local now, f = now_s(), file_of(k[1])
  if f and f.state == BANNED then return fail('REJECTED', 'this file was removed') end
  if not f or f.gen ~= a[2] then return fail('LATER', 'the upload took too long') end
  local first = f.state == INTENT
  f.state, f.used, f.size, f.previews = STORED, now, tonumber(a[3]), bit.bor(f.previews, tonumber(a[4]))
  if a[5] ~= '0' then f.picture = tonumber(a[5]) end
  keep_file(k[1], f)
  redis.call('HSET', k[1], 'u:' .. a[6], '')
  if f.refs == 0 then due_at(k[2], a[1], now + tonumber(a[7])) end
  return first and 1 or 0
end

register('file_stored', file_stored)

-- upload_rows: read a user's descriptions of files that the user uploaded, or opened in a conversation within a day.
-- KEYS  uploads
-- ARGV  age_ms hash …                                  (age_ms: how old an upload may be; 0: any)
-- Returns {row or false, …}
--
-- Keeps true: a row that is too old counts as none.

local function upload_rows(k, a)
  local oldest, rows = now_ms() - tonumber(a[1]), redis.call('HMGET', k[1], unpack(a, 2))
  for i, row in ipairs(rows) do
    if row and tonumber(a[1]) > 0 and struct.unpack('>I8', row) < oldest then rows[i] = false end
  end
  return rows
end

register('upload_rows', upload_rows, {'no-writes'})

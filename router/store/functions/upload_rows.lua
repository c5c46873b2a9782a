-- upload_rows: read a user's descriptions of files that the user uploaded, and where the user has opened them.
-- KEYS  uploads [opened …]                             (opened: one of each hash, or none)
-- ARGV  age_ms hash …                                  (age_ms: how old an upload may be; 0: any)
-- Returns {row or false, conversation or false, …}
--
-- Keeps true: a row that is too old counts as none.

local function upload_rows(k, a)
  local oldest, rows, found = now_ms() - tonumber(a[1]), redis.call('HMGET', k[1], unpack(a, 2)), {}
  for i, row in ipairs(rows) do
    local old = row and tonumber(a[1]) > 0 and struct.unpack('>I8', row) < oldest
    found[2 * i - 1], found[2 * i] = not old and row, k[i + 1] and redis.call('GET', k[i + 1]) or false
  end
  return found
end

register('upload_rows', upload_rows, {'no-writes'})

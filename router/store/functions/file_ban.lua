-- file_ban: remove a file everywhere and for ever.
-- KEYS  file due
-- ARGV  name object                                    (object: the objects' name up to the generation)
-- Returns 1 if there was such a file, else 0
--
-- Keeps true: the record stays and refuses the same bytes. The due list names the file's objects until they are deleted.

local function file_ban(k, a)
  local f = file_of(k[1])
  if f and f.state ~= BANNED then
    for _, end_of in ipairs({'', '.320', '.1600'}) do due_at(k[2], '!' .. a[2] .. f.gen .. end_of, now_s()) end
  end
  local known = f and f.state ~= BANNED
  f = f or {gen = '--------', size = 0, refs = 0, previews = 0}
  f.state, f.used = BANNED, now_s()
  redis.call('UNLINK', k[1])
  f.refs = 0
  keep_file(k[1], f)
  redis.call('ZREM', k[2], a[1])
  return known and 1 or 0
end

register('file_ban', file_ban, {'allow-oom'})

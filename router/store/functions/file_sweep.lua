-- file_sweep: forget a file that has had no reference for long enough.
-- KEYS  file due
-- ARGV  name object keep_s intent_s                    (object: the objects' name up to the generation)
-- Returns 1 if the file is forgotten: its objects are in the due list now; else 0
--
-- Keeps true: a file with a reference or a pin stays. The due list names the objects of a forgotten file until they are
-- deleted.

local function file_sweep(k, a)
  local now, f = now_s(), file_of(k[1])
  if not f or f.refs > 0 or f.state == BANNED then
    redis.call('ZREM', k[2], a[1])
    return 0
  end
  local ends = math.min(f.used, now) + tonumber(f.state == STORED and a[3] or a[4])
  if ends > now then
    due_at(k[2], a[1], ends)
    return 0
  end
  redis.call('UNLINK', k[1])
  redis.call('ZREM', k[2], a[1])
  for _, end_of in ipairs({'', '.320', '.1600'}) do due_at(k[2], '!' .. a[2] .. f.gen .. end_of, now) end
  return 1
end

register('file_sweep', file_sweep, {'allow-oom'})

-- file_settle: record whether a conversation refers to a file, as the conversation's slot has answered.
-- KEYS  file due
-- ARGV  name conv found pin_s keep_s
--       found: `refers`; `no`; `lost`, if Redis has no such conversation; `removed`, if it was removed
-- Returns the number of references that are left; -1 if the conversation refers to a file that is not stored
--
-- Keeps true:
-- - A pin younger than pin_s is not removed, whatever was found, because its message may have been written since. Only a
--   removed conversation can get no more messages.
-- - A reference that was seen once is not removed because Redis has lost its conversation.

local function file_settle(k, a)
  local now, f, item, field, found = now_s(), file_of(k[1]), a[1] .. ' ' .. a[2], 'c:' .. a[2], a[3]
  redis.call('ZREM', k[2], item)
  if not f then return found == 'refers' and -1 or 0 end
  local row, stamp, seen = redis.call('HGET', k[1], field), 0, 0
  if row then stamp, seen = struct.unpack(REFERENCE, row) end
  if found == 'refers' then
    redis.call('HSET', k[1], field, struct.pack(REFERENCE, row and stamp or now, 1))
    if not row then
      f.refs = f.refs + 1
      redis.call('ZREM', k[2], a[1])
      keep_file(k[1], f)
    end
    return f.state == STORED and f.refs or -1
  end
  if not row or found == 'lost' and seen == 1 then return f.refs end
  local ends = math.min(stamp, now) + tonumber(a[4])
  if ends > now and found ~= 'removed' then
    due_at(k[2], item, ends)
    return f.refs
  end
  redis.call('HDEL', k[1], field)
  f.refs, f.used = math.max(f.refs - 1, 0), now
  keep_file(k[1], f)
  if f.refs == 0 and f.state ~= BANNED then due_at(k[2], a[1], now + tonumber(a[5])) end
  return f.refs
end

register('file_settle', file_settle, {'allow-oom'})

-- file_pin: pin a file, because a conversation is about to refer to it (by a message or an avatar).
-- KEYS  file due
-- ARGV  name conv pin_s
-- Returns {the time (s) of the pin, which counts as a reference for pin_s, replid}; NOTFOUND if there is no such file
--
-- Keeps true: a file is pinned before a message with it is written, so the file exists as long as the message does. When
-- the pin is due, a router finds out whether the message was written (file_settle).

local function file_pin(k, a)
  local now, f = now_s(), file_of(k[1])
  if not f or f.state ~= STORED then return fail('NOTFOUND') end
  f.used = now
  local row, seen, _ = redis.call('HGET', k[1], 'c:' .. a[2]), 0, nil
  if row then _, seen = struct.unpack(REFERENCE, row) else f.refs = f.refs + 1 end
  redis.call('HSET', k[1], 'c:' .. a[2], struct.pack(REFERENCE, now, seen))
  keep_file(k[1], f)
  redis.call('ZREM', k[2], a[1])
  due_at(k[2], a[1] .. ' ' .. a[2], now + tonumber(a[3]))
  return {now, replid()}
end

register('file_pin', file_pin)

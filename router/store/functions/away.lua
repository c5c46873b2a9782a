-- A session has ended.
-- KEYS dev
-- ARGV device session now(ms) presence_channel touched
-- Returns 1, or 0 if the device has another session by now, or none
-- Keeps true: the row stays (it holds the kick mark and when she was last seen); only its own session can end it.

local function away(keys, a)
  local row = redis.call('HGET', keys[1], a[1])
  row = row and cmsgpack.unpack(row)
  if not row or row[SESSION] ~= a[2] or row[GATEWAY] == '' then return 0 end
  row[GATEWAY], row[SEEN] = '', math.max(row[SEEN], tonumber(a[3]))
  redis.call('HSET', keys[1], a[1], cmsgpack.pack(row))
  redis.call('SPUBLISH', a[4], a[5])
  return 1
end

register('away', away, {'allow-oom'})

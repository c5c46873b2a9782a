-- Bring a direct event to one of its two users: raise her row, and publish.
-- KEYS user
-- ARGV convs recent channel conv other seq count event author(0|1)
-- Returns 1 if it was published, 0 if she had it (or does not exist)
-- Keeps true: an event is published at most once, whoever delivers it how often; head and read only go up. One that
-- comes after its successor is not published: the hole that the successor has shown is filled from the log.

local function deliver(keys, a)
  local convs, conv, seq = a[1], a[4], tonumber(a[6])
  local row = redis.call('HGET', convs, conv)
  local head, count, read, read_count, _ = 0, 0, 0, 0, nil
  if row then _, _, head, count, read, read_count = struct.unpack(ROW, row) end
  local raised, reads = seq > head, a[9] == '1' and seq > read
  if not (raised or reads) or not alive(keys[1]) then return 0 end
  if raised then head, count = seq, tonumber(a[7]) end
  if reads then read, read_count = seq, tonumber(a[7]) end
  redis.call('HSET', convs, conv, struct.pack(ROW, 'd', PRESENT, head, count, read, read_count, 0) .. a[5])
  raise(a[2], conv)
  if not raised then return 0 end
  redis.call('SPUBLISH', a[3], a[8])
  return 1
end

register('deliver', deliver)

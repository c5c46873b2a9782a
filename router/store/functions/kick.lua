-- End the sessions of a device, or of all ('' for the device), that have started by now.
-- KEYS user
-- ARGV dev channel device kick
-- Returns 1, or 0 if there is no such user
-- Keeps true: the mark stays in the row, so it also meets a register that was under way. What started on a clock that
-- is ahead of ours is kicked too. A device without a row is kept out by `*`: at worst another one, just connecting, is
-- asked to connect again.

local function mark(dev, device, row, least)
  row = cmsgpack.unpack(row)
  row[MIN_STARTED] = math.max(row[MIN_STARTED], row[STARTED] + 1, least)
  redis.call('HSET', dev, device, cmsgpack.pack(row))
end

local function kick(keys, a)
  if not alive(keys[1]) then return 0 end
  local dev, device, least = a[1], a[3], now_ms() + 1
  local row = device ~= '' and redis.call('HGET', dev, device)
  if row then
    mark(dev, device, row, least)
  else
    local rows = device == '' and redis.call('HGETALL', dev) or {}
    for i = 1, #rows, 2 do
      if rows[i] ~= '*' then mark(dev, rows[i], rows[i + 1], least) end
    end
    redis.call('HSET', dev, '*', digits(math.max(least, tonumber(redis.call('HGET', dev, '*') or 0))))
  end
  redis.call('SPUBLISH', a[2], a[4])
  return 1
end

register('kick', kick, {'allow-oom'})

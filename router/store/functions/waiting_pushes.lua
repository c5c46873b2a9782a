-- waiting_pushes: read the events that wait for a user, the user's read marks and the devices' cursors, all at one moment.
-- KEYS  pushes convs dev recent, then the cursor of each device
-- ARGV  the names of these devices
-- Returns {attempts, conv, seq, due, read, cursor, …}, `cursor` of the furthest device, 0 without one; nil if the user has
--   a device that the caller did not name: its cursor is a key, too, so the caller asks again

local function furthest(k, conv)
  local cursor = 0
  for i = 5, #k do cursor = math.max(cursor, tonumber(redis.call('HGET', k[i], conv) or 0)) end
  return cursor
end

local function waiting_pushes(k, a)
  local pushes, convs, dev, named = k[1], k[2], k[3], {}
  for _, device in ipairs(a) do named[device] = true end
  for _, device in ipairs(redis.call('HKEYS', dev)) do
    if device ~= '*' and not named[device] then return nil end
  end
  catch_up_rows(convs, k[4])
  local waits, out = redis.call('HGETALL', pushes), {0}
  for i = 1, #waits, 2 do
    local conv, value = waits[i], waits[i + 1]
    if conv == '!' then
      out[1] = tonumber(value)
    else
      local seq, due = string.match(value, '(%d+) (%d+)')
      local row, n, read, _ = row_of(convs, conv), #out, 0, nil
      if row then _, _, _, _, read = unpack_row(row) end
      out[n + 1], out[n + 2], out[n + 3] = conv, seq, due
      out[n + 4], out[n + 5] = digits(read), digits(furthest(k, conv))
    end
  end
  return out
end

register('waiting_pushes', waiting_pushes, {'allow-oom'})

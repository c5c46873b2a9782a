-- clear_pushes: remove events that need no push any more, because they were pushed or a device has them.
-- KEYS  push pushes
-- ARGV  user delay_ms, then conv and seq of each         (delay '': else the user's push is due after it)
-- Returns the number of conversations that still wait
--
-- Keeps true: an event after the cleared seq stays, with its deadline. The claim and the count of attempts end.

local function clear_pushes(k, a)
  local push, pushes, user, delay = k[1], k[2], a[1], tonumber(a[2])
  local now, waits, left, due = now_ms(), {}, 0, nil
  local found = redis.call('HGETALL', pushes)
  for i = 1, #found, 2 do waits[found[i]] = found[i + 1] end
  local cleared = {'!'}
  for i = 3, #a, 2 do
    local wait = waits[a[i]]
    if wait and tonumber(string.match(wait, '^%d+')) <= tonumber(a[i + 1]) then cleared[#cleared + 1] = a[i] end
  end
  for _, conv in ipairs(cleared) do waits[conv] = nil end
  for _, wait in pairs(waits) do
    local by = tonumber(string.match(wait, '%d+$'))
    left, due = left + 1, due and math.min(due, by) or by
  end
  redis.call('HDEL', pushes, unpack(cleared))
  if not due then
    redis.call('ZREM', push, user)
    return left
  end
  if due > now + MOST_PUSH_MS + SKEW_MS then due = now end  -- of another clock
  redis.call('ZADD', push, digits(delay and now + delay or due), user)
  return left
end

register('clear_pushes', clear_pushes, {'allow-oom'})

-- look_due: look which due lists have items that are due, without claiming them.
-- KEYS  list …
-- Returns {answer …}, one of each key: 0 if no item is due, else {number of due items, for how long the oldest is due (ms)}

local function look_due(keys)
  local now, found = now_ms(), {}
  for i, list in ipairs(keys) do
    local oldest = redis.call('ZRANGEBYSCORE', list, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 1)[2]
    found[i] = oldest and {redis.call('ZCOUNT', list, '-inf', now), now - tonumber(oldest)} or 0
  end
  return found
end

register('look_due', look_due, {'no-writes'})

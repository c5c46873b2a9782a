-- moved: the conversations that some lists have at a time near now.
-- KEYS  list … (`moved`, or `dirty` with due times)
-- ARGV  from to (ms from now; negative before)
-- Returns {{conv …} …}, one of each key
--
-- Keeps true: the times are those of each server's own clock, so the clock of the caller does not matter.

local function moved(keys, a)
  local now, found = now_ms(), {}
  for i, list in ipairs(keys) do
    local convs = {}
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', list, now + a[1], now + a[2])) do
      if string.sub(name, 2, 2) == ':' then convs[#convs + 1] = name end  -- a conversation, not a mark of another kind
    end
    found[i] = convs
  end
  return found
end

register('moved', moved, {'no-writes'})

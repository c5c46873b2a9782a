-- range: events in (after, upto], ascending, as the user sees them.
-- KEYS  conv log
-- ARGV  user after upto limit bytes                    (user '' is the server)
-- Returns {position, floor, more 0|1, {event ...}}; NOTFOUND
--
-- Keeps true: the reader has everything it may see up to `position` (deleted and trimmed events leave holes in the log, so
-- only a page cut short by limit or bytes ends at its last event); a page has about `bytes` bytes at most, one event
-- at least.

local STEP = 64                    -- entries read at once: what `bytes` can be overrun by, times the largest event

local function range(k, a)
  local floor, first, last = view(k[1], a[1])
  if not floor then return fail('NOTFOUND') end
  local position, upto, limit, left = tonumber(a[2]), math.min(tonumber(a[3]), last), tonumber(a[4]), tonumber(a[5])
  local events, from, to = {}, math.max(position + 1, first), string.format('%.0f', upto)
  while from <= upto do
    local want = math.min(STEP, limit - #events)
    local entries = redis.call('XRANGE', k[2], string.format('%.0f', from), to, 'COUNT', want)
    for i = 1, #entries do
      local event = entries[i][2][2]
      left = left - #event
      if left < 0 and #events > 0 then return {position, floor, 1, events} end
      events[#events + 1] = event
      position = seq_of(event)
    end
    if #entries < want then break end
    if #events >= limit then return {position, floor, position < upto and 1 or 0, events} end
    from = position + 1
  end
  return {math.max(position, upto), floor, 0, events}
end

register('range', range, {'no-writes'})

-- start: the cursor at which a device new to the server begins.
-- KEYS  conv log
-- ARGV  user read bytes
-- Returns the cursor; NOTFOUND
--
-- Keeps true: 100 events back, or the read mark if that is earlier (but 1000 events back at most); never so far that what
-- follows is trimmed or from before the user came. Counted in the log, not reckoned: seqs jump. Stops early where the
-- events are large: a new device needs no megabytes of old news.

local NEAR, FAR, STEP = 100, 1000, 100

local function start(k, a)
  local floor, first, last = view(k[1], a[1])
  if not floor then return fail('NOTFOUND') end
  local read, left, passed = tonumber(a[2]), tonumber(a[3]), 0
  local cursor, first_id = last, string.format('%.0f', first)
  while passed < FAR and (passed < NEAR or cursor > read) and left > 0 do
    local entries = redis.call('XREVRANGE', k[2], string.format('%.0f', cursor), first_id, 'COUNT', STEP)
    for i = 1, #entries do
      local event = entries[i][2][2]
      left = left - #event
      cursor = seq_of(event) - 1
    end
    passed = passed + #entries
    if #entries < STEP then cursor = 0 break end
  end
  if passed > NEAR and cursor < read then cursor = read end
  return math.max(cursor, floor, first - 1, 0)
end

register('start', start, {'no-writes'})

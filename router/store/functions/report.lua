-- report: note that a user reports a message, with a copy of it, or another user.
-- KEYS  report reports open resolved dismissed closed, and of a message conv log
-- ARGV  name reporter user conv seq reason              (name: of this report, the same for each try; conv '' for a user)
-- Returns {1 if it is new else 0, at (µs)}; NOTFOUND if the reporter does not see such a message; QUOTA
--
-- Keeps true: a user's reports of the same thing are one. At most MOST reports are kept; the oldest that is closed makes
-- room. `report` has the rows; `reports`, and a set for each state, have when (µs) they were made.

local MOST = 10000                 -- of a partition

local function is_visible(ranges, seq)
  for _, range in ipairs(ranges) do
    if range[1] <= seq and seq <= range[2] then return true end
  end
  return false
end

-- Make room for one more; false if all reports are open.
local function has_room(k)
  if redis.call('ZCARD', k[2]) < MOST then return true end
  local oldest, first = nil, nil
  for _, of_state in ipairs({k[4], k[5]}) do
    local found = redis.call('ZRANGE', of_state, 0, 0, 'WITHSCORES')
    if found[1] and (not first or tonumber(found[2]) < first) then oldest, first = found[1], tonumber(found[2]) end
  end
  if not oldest then return false end
  for _, names in ipairs({k[2], k[4], k[5], k[6]}) do redis.call('ZREM', names, oldest) end
  redis.call('HDEL', k[1], oldest)
  return true
end

local function report(k, a)
  local name, reporter, user, conv, seq, reason = a[1], a[2], a[3], a[4], a[5], a[6]
  local known = redis.call('ZSCORE', k[2], name)
  if known then return {0, known} end
  local event
  if conv ~= '' then
    local _, _, _, _, visible = view(k[7], reporter)
    local entry = visible and is_visible(visible, tonumber(seq)) and redis.call('XRANGE', k[8], seq, seq)[1]
    if not entry or not entry[2][4] then return fail('NOTFOUND', 'no such message') end
    event, user = entry[2][2], entry[2][4]
  end
  local us = now_us()
  if not has_room(k) then return fail('QUOTA') end
  redis.call('HSET', k[1], name, cmsgpack.pack({at = us, reporter = reporter, user = user, conversation = conv,
    seq = tonumber(seq), reason = reason, state = 'open', note = '', event = event, closed = 0}))
  redis.call('ZADD', k[2], us, name)
  redis.call('ZADD', k[3], us, name)
  return {1, string.format('%.0f', us)}
end

register('report', report)

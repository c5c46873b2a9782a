-- mark_pair_copied: record that both users' slots have copies of their pair's record.
-- KEYS  conv dirty
-- ARGV  conv n                                         (the number of the record that was copied; 0: there was none)
-- Returns 1, or 0 if the record has changed since
--
-- Keeps true: a record that has changed stays marked. One that has changed within RECHECK_MS stays marked until then, and
-- its copies are written once more, because a failover of a user's server may have taken a copy back. One with an open
-- request is marked for the end of the request. One that says nothing any more is deleted once it is old, and is marked
-- until then.

local LATER_MS = 3600000           -- so that one call handles all requests that end in an hour

local function mark_pair_copied(k, a)
  local record = pair_of(redis.call('HGET', k[1], 'pair'))
  if record and record.n ~= tonumber(a[2]) then return 0 end
  local ends = nil
  for _, side in pairs(record and record.of or {}) do
    if side.asked then ends = math.min(ends or side.ends, side.ends) end
  end
  local blank, now = record and is_blank(record), now_ms()
  local again = record and math.floor(record.n / 1000) + RECHECK_MS
  if again and again > now and not of_another_clock(again, now + RECHECK_MS) then
    redis.call('ZADD', k[2], again, '=' .. a[1])
  elseif ends then
    redis.call('ZADD', k[2], ends + LATER_MS, '=' .. a[1])
  elseif blank and not is_old(record, now_us()) then
    redis.call('ZADD', k[2], (record.n + BLANK_US) / 1000 + LATER_MS, '=' .. a[1])
  else
    redis.call('ZREM', k[2], '=' .. a[1])
    if blank then redis.call('HDEL', k[1], 'pair') end
  end
  return 1
end

register('mark_pair_copied', mark_pair_copied, {'allow-oom'})

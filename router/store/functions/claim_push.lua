-- Users whose push is due, for one router alone until its lease ends.
-- KEYS push
-- ARGV limit lease(ms)
-- Returns the users
-- Keeps true: a claim is only a later deadline, so one whose router dies comes again by itself.

local function claim_push(keys, a)
  local now = now_ms()
  local users = redis.call('ZRANGEBYSCORE', keys[1], '-inf', digits(now), 'LIMIT', 0, a[1])
  for _, user in ipairs(users) do redis.call('ZADD', keys[1], 'XX', digits(now + a[2]), user) end
  return users
end

register('claim_push', claim_push, {'allow-oom'})

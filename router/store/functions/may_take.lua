-- may_take: whether `take_from_rate` would take one from a rate of a user now. It reads only.
-- KEYS  user
-- ARGV  field cost(µs) burst(µs)
-- Returns 1; RATE with the microseconds to wait

local function may_take(k, a)
  local _, refusal = next_stamp(redis.call('HGET', k[1], a[1]), tonumber(a[2]), tonumber(a[3]), now_us())
  return refusal or 1
end

register('may_take', may_take, {'no-writes'})

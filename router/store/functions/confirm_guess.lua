-- confirm_guess: record that a password was right: forget the guesses before it, and remember the caller's address.
-- KEYS  user
-- ARGV  address token (as given to `take_guess`)
-- Returns 1, or 0 if there is no such user; SUSPENDED
--
-- Keeps true: at most KNOWN_PLACES places are remembered. If there are more, the place that was used longest ago is
-- forgotten together with its rate.

local function confirm_guess(keys, a)
  if not alive(keys[1]) then return 0 end
  if is_suspended(redis.call('HGET', keys[1], 'suspended'), now_us()) then return fail('SUSPENDED') end
  redis.call('HDEL', keys[1], guesses_of(keys[1], a[1], a[2]))
  remember_place(keys[1], a[1])
  return 1
end

register('confirm_guess', confirm_guess)

-- take_guess: take one guess at a user's password from a rate: from the rate of a place that is known, else from the
-- common rate.
-- KEYS  user
-- ARGV  cost(µs) burst(µs) address token (digests of 16 characters; token '': the caller has shown none)
-- Returns 1, or 0 if there is no such user; RATE with the microseconds to wait
--
-- Keeps true: a caller from an unknown place takes from the common rate alone, so it cannot use up the rate of a known
-- place. A user that does not exist has no rate, and no data is stored for it.

local function take_guess(keys, a)
  if not alive(keys[1]) then return 0 end
  return take_from_rate(keys[1], guesses_of(keys[1], a[3], a[4]), tonumber(a[1]), tonumber(a[2])) or 1
end

register('take_guess', take_guess)

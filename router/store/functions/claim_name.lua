-- claim_name: reserve for one user all names that differ from the user's name only in case.
-- KEYS  name
-- ARGV  user, the holder to be replaced ('': none)
-- Returns the user that holds these names now, and for how many ms
--
-- Keeps true: if two users claim the names at the same time, one of them gets the names. A holder whose account was
-- never created is replaced only if the caller names it, so only one of two callers replaces it.

local function claim_name(keys, a)
  local now, held = now_ms(), redis.call('GET', keys[1])
  if held then
    local user, since = string.match(held, '^(%S+) (%d+)$')
    if user == a[1] or user ~= a[2] then return {user, digits(math.abs(now - since))} end
  end
  redis.call('SET', keys[1], a[1] .. ' ' .. digits(now))
  return {a[1], '0'}
end

register('claim_name', claim_name, {'allow-oom'})

-- Take the names that differ from a user's in case alone, so that no account is made of another one of them.
-- KEYS name
-- ARGV user, holder to be replaced ('': none)
-- Returns the user who holds the names now, and for how long (ms)
-- Keeps true: of two who want them at once one gets them. A holder that was never made is replaced by its name only, so
-- of two that replace it one does.

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

-- offer_reset: store the one token with which a user's password can be reset; an earlier token is void.
-- KEYS  user audit
-- ARGV  digest of the token, how long it is valid(s), name, by (an admin; '': a server key)
-- Returns the second at which the token expires; NOTFOUND if the user has no password; FORBIDDEN for an admin if the user
-- has a role in the deployment

local function offer_reset(k, a)
  local expires = math.floor(now_us() / 1000000) + tonumber(a[2])
  if redis.call('HEXISTS', k[1], 'pw') == 0 then return fail('NOTFOUND') end
  if a[4] ~= '' and redis.call('HEXISTS', k[1], 'roles') == 1 then return fail('FORBIDDEN', HAS_ROLE) end
  redis.call('HSET', k[1], 'reset', a[1] .. ' ' .. digits(expires))
  add_to_audit(k[2], 'password_reset', a[4], a[3], now_ms(), '')
  return expires
end

register('offer_reset', offer_reset)

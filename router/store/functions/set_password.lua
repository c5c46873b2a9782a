-- Another hash for a password that stands.
-- KEYS user
-- ARGV pw
-- Returns 1; NOTFOUND if the user has none (or none any more: a late call must not give a deleted user one)

local function set_password(keys, a)
  if redis.call('HEXISTS', keys[1], 'pw') == 0 then return fail('NOTFOUND') end
  redis.call('HSET', keys[1], 'pw', a[1])
  return 1
end

register('set_password', set_password)

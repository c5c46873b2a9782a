-- set_roles: set the roles that a user has in the deployment.
-- KEYS  user audit
-- ARGV  name roles                                     (names with a space between; '' none)
-- Returns 1; NOTFOUND

local function set_roles(k, a)
  if not alive(k[1]) then return fail('NOTFOUND') end
  if a[2] == '' then redis.call('HDEL', k[1], 'roles') else redis.call('HSET', k[1], 'roles', a[2]) end
  add_to_audit(k[2], 'roles', '', a[1], now_ms(), a[2])
  return 1
end

register('set_roles', set_roles)

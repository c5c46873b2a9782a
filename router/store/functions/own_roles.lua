-- own_roles: one user's role in many conversations, where one server has them all.
-- KEYS  conv, of each conversation
-- ARGV  user
-- Returns a string with one character for each conversation: the role, or '-' where the user is no present member.

local function own_roles(keys, a)
  local field, roles = 'u:' .. a[1], {}
  for i, key in ipairs(keys) do
    local row = redis.call('HGET', key, field)
    roles[i] = row and string.sub(row, 1, 1) or '-'
  end
  return table.concat(roles)
end

register('own_roles', own_roles, {'no-writes'})

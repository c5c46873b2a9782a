-- move_format: move a deployment from one format to the next.
-- KEYS  deployment
-- ARGV  from to
-- Returns 1, or 0 if the deployment's format is not `from`

local function move_format(keys, a)
  if redis.call('HGET', keys[1], 'format') ~= a[1] then return 0 end
  redis.call('HSET', keys[1], 'format', a[2])
  return 1
end

register('move_format', move_format, {'allow-oom'})

-- row: read a user's row of a direct conversation.
-- KEYS  convs recent
-- ARGV  conv
-- Returns the row; nil

local function row(keys, a)
  catch_up_row(keys[1], keys[2], a[1])
  return redis.call('HGET', keys[1], a[1])
end

register('row', row, {'allow-oom'})

-- End a user for ever: a tombstone, and with it everything of hers that nobody else needs.
-- KEYS user
-- ARGV dev cursor_prefix groups convs recent pushes push user channel kick presence_channel touched
-- Returns the groups and channels she is still in; NOTFOUND if there never was such a user
-- Keeps true: running it again finishes what was begun. Her rows go only when she is in no group any more, so until then
-- whoever takes over can find out where she must be taken out.

local function delete_account(keys, a)
  local created, deleted = unpack(redis.call('HMGET', keys[1], 'created', 'deleted'))
  if not created and not deleted then return fail('NOTFOUND') end
  redis.call('UNLINK', keys[1])
  redis.call('HSET', keys[1], 'deleted', deleted or digits(now_ms()))
  for _, device in ipairs(redis.call('HKEYS', a[1])) do redis.call('UNLINK', a[2] .. device) end
  redis.call('UNLINK', a[1], a[6])
  redis.call('ZREM', a[7], a[8])
  local groups = redis.call('ZRANGE', a[3], 0, -1)
  if #groups == 0 then redis.call('UNLINK', a[4], a[5]) end
  redis.call('SPUBLISH', a[9], a[10])
  redis.call('SPUBLISH', a[11], a[12])
  return groups
end

register('delete_account', delete_account, {'allow-oom'})

-- clear_freed: remove files from `freed`, because the files' own slots know that this conversation has no message with
-- them any more, or that they are no avatars of this user any more.
-- KEYS  conv, or user
-- ARGV  hashes                                         (32 bytes each: the beginning of `freed` as the caller read it)
-- Returns 1
--
-- Keeps true: a file that was added to `freed` since then stays.

local function clear_freed(k, a)
  local now = redis.call('HGET', k[1], 'freed') or ''
  if string.sub(now, 1, #a[1]) ~= a[1] then return 1 end
  if #now == #a[1] then redis.call('HDEL', k[1], 'freed')
  else redis.call('HSET', k[1], 'freed', string.sub(now, #a[1] + 1)) end
  return 1
end

register('clear_freed', clear_freed, {'allow-oom'})

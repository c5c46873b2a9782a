-- mark_user: mark a user whose settings a router has to apply, or remove the mark once that is done.
-- KEYS  dirty
-- ARGV  mark due_in_ms settled(0|1)
-- Returns 1, or 0 if the user was marked again while a router settled the last mark
--
-- Keeps true: a mark that is set while it is claimed is due before the claim ends, so it is not removed.

local function mark_user(k, a)
  local now, wait = math.floor(now_us() / 1000), tonumber(a[2])
  if a[3] == '1' then
    local due = tonumber(redis.call('ZSCORE', k[1], a[1]) or now)
    if due <= now + wait then return 0 end
    redis.call('ZREM', k[1], a[1])
    return 1
  end
  redis.call('ZADD', k[1], 'NX', '+inf', '!')
  redis.call('ZADD', k[1], now + wait, a[1])
  return 1
end

register('mark_user', mark_user, {'allow-oom'})

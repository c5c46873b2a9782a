-- create: make a conversation with its founders, unless it is there or was removed.
-- KEYS  conv
-- ARGV  log dirty kind title cost burst user role ...
-- Returns 1 if it was made, else 0
--
-- Keeps true:
-- - `m` is what makes a conversation exist, and comes last: a call that died before is as good as none.
-- - Log and dirty set exist from now on, empty as they are: the other functions name them as keys.
-- - The first event of a direct conversation jumps as after a failover. Its id can be worked out by anyone, so it may
--   have been here before and been lost; a group's id is random and never comes back.

local function create(k, a)
  local conv, log, kind = k[1], a[1], a[3]
  local h = redis.call('HMGET', conv, 'm', 'gone')
  if h[1] or h[2] then return 0 end
  local us = now_us()
  local made = math.floor(us / 1000)
  local owners = 0
  for i = 7, #a, 2 do
    redis.call('HSET', conv, 'u:' .. a[i], a[i + 1] .. ' 0 0')
    if a[i + 1] == 'o' then owners = owners + 1 end
  end
  redis.call('ZADD', a[2], 'NX', '+inf', '!')
  if redis.call('EXISTS', log) == 0 then
    redis.call('XADD', log, '0-1', 'e', '')
    redis.call('XDEL', log, '0-1')
  end
  redis.call('HSET', conv, 'kind', kind, 'title', a[4], 'made', made, 'size', (#a - 6) / 2, 'owners', owners, 'ver', 0,
    'm', struct.pack(META, 0, 0, tonumber(a[5]), tonumber(a[6]), kind == 'd' and FRESH or replid(us), made))
  return 1
end

register('create', create)

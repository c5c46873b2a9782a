-- An event waits for one of the user's devices: push at the deadline, unless one has it by then.
-- KEYS user
-- ARGV push pushes user conv seq due(ms)
-- Returns 1, or 0 if there is no such user or too many of her conversations wait
-- Keeps true: per conversation the newest seq and the earliest deadline; the user's deadline is the earliest of all. The
-- sentinel keeps `push` in being, since others name it as a key. A user waits for at most WAITS conversations.

local WAITS = 1000

local function arm(keys, a)
  local conv, seq, due = a[4], tonumber(a[5]), tonumber(a[6])
  local waits = redis.call('HGET', a[2], conv)
  if not waits and redis.call('HLEN', a[2]) > WAITS or not alive(keys[1]) then return 0 end
  if waits then
    local was, by = string.match(waits, '(%d+) (%d+)')
    seq, due = math.max(seq, tonumber(was)), math.min(due, tonumber(by))
  end
  redis.call('HSET', a[2], conv, digits(seq) .. ' ' .. digits(due))
  redis.call('ZADD', a[1], 'NX', '+inf', '!')
  redis.call('ZADD', a[1], 'LT', digits(due), a[3])
  return 1
end

register('arm', arm)

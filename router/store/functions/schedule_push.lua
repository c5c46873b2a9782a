-- schedule_push: an event waits for one of the user's devices; a push is due after `delay`, unless a device has it then.
-- KEYS  user push pushes
-- ARGV  user conv seq delay_ms                          (negative: due already)
-- Returns 1, or 0 if there is no such user, or too many of the user's conversations wait
--
-- Keeps true: of each conversation the newest seq and the earliest deadline are kept. The user's deadline is that of the
-- first event that waits. Later events do not move it: that would cut short a claim or a backoff. The entry `!` keeps
-- `push` from being deleted, because other functions declare it as a key. At most WAITS conversations of a user wait.

local WAITS = 1000

local function schedule_push(k, a)
  local user_key, push, pushes = k[1], k[2], k[3]
  local user, conv, seq, delay = a[1], a[2], tonumber(a[3]), tonumber(a[4])
  local waits, waiting = redis.call('HGET', pushes, conv), redis.call('HLEN', pushes)
  if not waits and waiting > WAITS or not alive(user_key) then return 0 end
  if delay > MOST_PUSH_MS + SKEW_MS then delay = 0 end  -- the event is of another clock
  local due = now_ms() + delay
  if waits then
    local was, by = string.match(waits, '(%d+) (%d+)')
    seq, due = math.max(seq, tonumber(was)), math.min(due, tonumber(by))
  end
  redis.call('ZADD', push, 'NX', '+inf', '!')
  redis.call('ZADD', push, 'NX', digits(due), user)
  redis.call('HSET', pushes, conv, digits(seq) .. ' ' .. digits(due))
  return 1
end

register('schedule_push', schedule_push)

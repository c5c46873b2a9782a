-- suspend: suspend a user, or end that.
-- KEYS  user dev convs recent audit
-- ARGV  name channel kick presence_channel touched rank by until reason suspends(0|1)
--       rank and by: of the one who decides (`rank_of`; by '': a server key); until (ms; 0: no end)
-- Returns 1, or 0 if the user was not suspended; NOTFOUND FORBIDDEN BADCOMMAND
--
-- Keeps true:
-- - It is one step: from then on tokens of the user are refused (`ensure_user`, `sync`, `confirm_guess`), the user's
--   devices are away, so the user is offline, and the audit has the act. Sessions that are open find it with the signal,
--   or in their audit, because their device's row is not theirs any more.
-- - Only a higher rank may suspend a user, or end that.

local function end_sessions(dev, now)
  local rows = redis.call('HGETALL', dev)
  for i = 1, #rows, 2 do
    if rows[i] ~= '*' then
      local least, seen, who = device_of(rows[i + 1])
      if who[GATEWAY] ~= '' then
        who[GATEWAY] = ''
        redis.call('HSET', dev, rows[i], struct.pack(TIMES, least, now) .. cmsgpack.pack(who))
      end
    end
  end
end

local function suspend(k, a)
  local us, rank, until_ms, suspends = now_us(), tonumber(a[6]), tonumber(a[8]), a[10] == '1'
  local created, roles, was = unpack(redis.call('HMGET', k[1], 'created', 'roles', 'suspended'))
  if not created then return fail('NOTFOUND') end
  if rank <= rank_of(roles) then return fail('FORBIDDEN', 'this takes a higher role in the deployment') end
  if suspends and until_ms > 0 and is_over(until_ms, us) then return fail('BADCOMMAND', PAST) end
  if not suspends and not was then return 0 end
  if suspends then
    local at = score_above_all(k[4], us)
    redis.call('HSET', k[1], 'suspended', digits(until_ms))
    end_sessions(k[2], math.floor(us / 1000))
    redis.call('HSET', k[3], TOKENS, digits(us))
    redis.call('ZADD', k[4], at, TOKENS)
    redis.call('SPUBLISH', a[2], a[3])
    redis.call('SPUBLISH', a[4], a[5])
  else
    redis.call('HDEL', k[1], 'suspended')
  end
  add_to_audit(k[5], suspends and 'suspend' or 'unsuspend', a[7], a[1], math.floor(us / 1000), a[9])
  return 1
end

register('suspend', suspend, {'allow-oom'})

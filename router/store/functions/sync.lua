-- Is this session still the one of its device, and what moved since? Registers, audits, ends a time of being behind and
-- delivers kicks; one set of rules, so that no two of these can disagree.
-- KEYS dev
-- ARGV device who started recent server above limit register(0|1) rest
--   `who`: msgpack [session, gateway, instance, started], as the row keeps it; `server` and `above`: since, '(' before the
--   score. `rest`, msgpack, is what an audit that finds nothing does without: [user, convs, groups, cursor prefix,
--   user channel, presence channel, Taken, Touched, connect cost µs, its burst, [conv, cursor, …]]
-- Returns nil when nothing moved; {'ok', since, more, below, new device, {conv, row, score, cursor, …}, {group, …}};
--   {'replaced'}; {'kicked'}; RATE | OOM when registering; BLOCKED
-- Keeps true: of two sessions of a device the one that started later stays, in whatever order they arrive; one that
-- started before a kick never gets in; a deleted user registers nothing; at most DEVICES devices have rows or cursors.
-- An audit writes only if its row is gone or not its own any more (a failover has lost it): then it registers again.

local DEVICES = 16
local BACK_US = 300000000          -- how far to go back when another server has taken over, whose clock may be behind
local FULL = 0.9                   -- of maxmemory: no new sessions beyond

local too_full, asked = false, 0

-- Asked for at most every 20 ms: when everybody comes back at once, it was a tenth of what that cost.
local function full(us)
  if us >= asked + 20000 or us < asked then
    local memory = redis.call('INFO', 'memory')
    local max = tonumber(string.match(memory, '\nmaxmemory:(%d+)'))
    too_full, asked = max > 0 and tonumber(string.match(memory, 'used_memory:(%d+)')) > FULL * max, us
  end
  return too_full
end

-- Forget the device that started longest ago, so that another finds room. If it was kicked, `*` remembers that.
local function evict(dev, rest)
  local rows, oldest, name, kicked = redis.call('HGETALL', dev), nil, nil, 0
  for i = 1, #rows, 2 do
    if rows[i] ~= '*' then
      local least, _, who = device_of(rows[i + 1])
      if not oldest or who[STARTED] < oldest then oldest, name, kicked = who[STARTED], rows[i], least end
    end
  end
  if kicked > tonumber(redis.call('HGET', dev, '*') or 0) then redis.call('HSET', dev, '*', digits(kicked)) end
  redis.call('HDEL', dev, name)
  redis.call('UNLINK', rest[4] .. name)
  local taken = cmsgpack.unpack(rest[7])
  taken[2] = name
  redis.call('SPUBLISH', rest[5], cmsgpack.pack(taken))
end

-- Of two sessions of a device, which goes on; of one instant, whichever, so long as all agree.
local function newer(one, other)
  if one[STARTED] ~= other[STARTED] then return one[STARTED] > other[STARTED] end
  return one[SESSION] > other[SESSION]
end

-- What the device says it has, for conversations that the user has; down as well as up.
local function replace_cursors(convs, cursor, given)
  for i = 1, #given, 2 do
    if redis.call('HEXISTS', convs, given[i]) == 1 then redis.call('HSET', cursor, given[i], given[i + 1]) end
  end
end

-- 'replaced', 'kicked', an error, or nil: the session is in.
local function admit(dev, a, row, rest)
  local who, registers = cmsgpack.unpack(a[2]), a[8] == '1'
  local created, deleted = unpack(redis.call('HMGET', rest[1], 'created', 'deleted'))
  if deleted then return fail('BLOCKED') end
  if registers then
    if full(now_us()) then return fail('OOM', 'near maxmemory') end
    local refused = spend(rest[1], 'connect', rest[9], rest[10])
    if refused then return refused end
  end
  local least, seen, was = tonumber(redis.call('HGET', dev, '*') or 0), 0, nil
  if row then least, seen, was = device_of(row) end
  if least > who[STARTED] then return 'kicked' end
  if was and was[SESSION] ~= who[SESSION] then
    -- After the newer one has ended, an older one that has just come is nobody's rival (clocks differ between gateways).
    local ended = registers and was[GATEWAY] == ''
    if newer(was, who) and not ended then return 'replaced' end
    if was[GATEWAY] ~= '' then redis.call('SPUBLISH', rest[5], rest[7]) end
  end
  if not row and redis.call('HLEN', dev) - redis.call('HEXISTS', dev, '*') >= DEVICES then
    if not registers then return 'replaced' end
    evict(dev, rest)
  end
  if not created then redis.call('HSET', rest[1], 'created', digits(now_ms())) end
  redis.call('HSET', dev, a[1], struct.pack(TIMES, least, seen) .. a[2])
  redis.call('SPUBLISH', rest[6], rest[8])
end

-- The newest rows, and then every other group she is in.
local function everything(a, rest, cursor)
  local recent, groups = a[4], redis.call('ZRANGE', rest[3], 0, -1)
  local newest = redis.call('ZREVRANGE', recent, 0, a[7] - 1, 'WITHSCORES')
  local more, told, others = redis.call('ZCARD', recent) > #newest / 2, {}, {}
  for i = 1, #newest, 2 do told[newest[i]] = true end
  for _, conv in ipairs(groups) do
    if not told[conv] then
      others[#others + 1], others[#others + 2] = conv, redis.call('ZSCORE', recent, conv)
    end
  end
  local rows = put_rows(put_rows({}, newest, rest[2], cursor), others, rest[2], cursor)
  local new = redis.call('HEXISTS', cursor, '*') == 0
  return {'ok', replid() .. '(' .. digits(newest[2] or 0), more and 1 or 0, digits(newest[#newest] or 0), new and 1 or 0, rows, groups}
end

local function sync(keys, a)
  local dev, registers, rest = keys[1], a[8] == '1', nil
  local row = redis.call('HGET', dev, a[1])
  if registers or not holds(row, a[2], a[3]) then
    rest = cmsgpack.unpack(a[9])
    local refused = admit(dev, a, row, rest)
    if refused then return type(refused) == 'string' and {refused} or refused end
    if registers then
      local cursor = rest[4] .. a[1]
      replace_cursors(rest[2], cursor, rest[11])
      return everything(a, rest, cursor)
    end
  end
  local server, above = replid(), a[6]
  if a[5] ~= server then
    above = '(' .. digits(math.max(0, string.sub(above, 2) - BACK_US))
  elseif redis.call('ZCOUNT', a[4], above, '+inf') == 0 then
    return nil                     -- as nearly always, at the cost of one look at the row and one at what moved
  end
  local moved = redis.call('ZRANGEBYSCORE', a[4], above, '+inf', 'WITHSCORES', 'LIMIT', 0, a[7])
  rest = rest or cmsgpack.unpack(a[9])
  local upto, more = #moved > 0 and '(' .. digits(moved[#moved]) or above, #moved == 2 * a[7] and 1 or 0
  return {'ok', server .. upto, more, 0, 0, put_rows({}, moved, rest[2], rest[4] .. a[1]), {}}
end

register('sync', sync, {'allow-oom'})

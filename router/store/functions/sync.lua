-- Is this session still the one of its device, and what moved since? Registers, audits, ends a time of being behind and
-- delivers kicks; one set of rules, so that no two of these can disagree.
-- KEYS dev
-- ARGV device session node started instance since limit register(0|1) recent rest
--   `since`: replication id and score, or ''. `rest`, msgpack, is what an audit that finds nothing does without:
--   [user, convs, groups, cursor prefix, user channel, presence channel, Taken, Touched, connect cost µs, its burst,
--   [conv, cursor, …]]
-- Returns {'replaced'} | {'kicked'} | {'ok', since, more, below, new device, {conv, row, score, cursor, …}, {group, …}}
--   | {'ok'} when nothing moved; RATE | BLOCKED | OOM, when registering.
-- Keeps true: of two sessions of a device the one that started later stays, in whatever order they arrive; one that
-- started before a kick never gets in; a deleted user registers nothing; at most DEVICES devices have rows or cursors.
-- An audit writes only if its row is gone or not its own any more (a failover has lost it): then it registers again.

local DEVICES = 16
local BACK_US = 300000000          -- how far to go back when another server has taken over, whose clock may be behind
local FULL = 0.9                   -- of maxmemory: no new sessions beyond

local function full()
  local memory = redis.call('INFO', 'memory')
  local max = tonumber(string.match(memory, '\nmaxmemory:(%d+)'))
  return max > 0 and tonumber(string.match(memory, 'used_memory:(%d+)')) > FULL * max
end

-- Forget the device that started longest ago, so that another finds room.
local function evict(dev, rest)
  local rows, oldest, name = redis.call('HGETALL', dev), nil, nil
  for i = 1, #rows, 2 do
    if rows[i] ~= '*' then
      local started = cmsgpack.unpack(rows[i + 1])[STARTED]
      if not oldest or started < oldest then oldest, name = started, rows[i] end
    end
  end
  redis.call('HDEL', dev, name)
  redis.call('UNLINK', rest[4] .. name)
  local taken = cmsgpack.unpack(rest[7])
  taken[2] = name
  redis.call('SPUBLISH', rest[5], cmsgpack.pack(taken))
end

-- What the device says it has, for conversations that the user has; down as well as up.
local function replace_cursors(convs, cursor, given)
  for i = 1, #given, 2 do
    if redis.call('HEXISTS', convs, given[i]) == 1 then redis.call('HSET', cursor, given[i], given[i + 1]) end
  end
end

-- 'replaced', 'kicked', an error, or nil: the session is in.
local function admit(dev, a, row, rest)
  local device, session, node, started, registers = a[1], a[2], a[3], tonumber(a[4]), a[8] == '1'
  local created, deleted = unpack(redis.call('HMGET', rest[1], 'created', 'deleted'))
  if deleted then return fail('BLOCKED') end
  if registers then
    if full() then return fail('OOM', 'near maxmemory') end
    local refused = spend(rest[1], 'connect', rest[9], rest[10])
    if refused then return refused end
  end
  local least = row and row[MIN_STARTED] or tonumber(redis.call('HGET', dev, '*') or 0)
  if least > started then return 'kicked' end
  if row and row[SESSION] ~= session then
    -- After the newer one has ended, an older one that has just come is nobody's rival (clocks differ between gateways).
    local ended = registers and row[GATEWAY] == ''
    local newer = row[STARTED] > started or row[STARTED] == started and row[SESSION] > session
    if newer and not ended then return 'replaced' end
    if row[GATEWAY] ~= '' then redis.call('SPUBLISH', rest[5], rest[7]) end
  end
  if not row and redis.call('HLEN', dev) - redis.call('HEXISTS', dev, '*') >= DEVICES then
    if not registers then return 'replaced' end
    evict(dev, rest)
  end
  if not created then redis.call('HSET', rest[1], 'created', digits(now_ms())) end
  redis.call('HSET', dev, device, cmsgpack.pack({session, node, a[5], started, least, row and row[SEEN] or 0}))
  redis.call('SPUBLISH', rest[6], rest[8])
end

-- The newest rows, and then every other group she is in.
local function everything(a, rest, cursor)
  local recent, groups = a[9], redis.call('ZRANGE', rest[3], 0, -1)
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
  return {'ok', replid() .. digits(newest[2] or 0), more and 1 or 0, digits(newest[#newest] or 0), new and 1 or 0, rows, groups}
end

local function sync(keys, a)
  local dev, registers = keys[1], a[8] == '1'
  local row, rest = redis.call('HGET', dev, a[1]), nil
  row = row and cmsgpack.unpack(row)
  if registers or not row or row[SESSION] ~= a[2] or row[GATEWAY] ~= a[3] or row[MIN_STARTED] > tonumber(a[4]) then
    rest = cmsgpack.unpack(a[10])
    local refused = admit(dev, a, row, rest)
    if refused then return type(refused) == 'string' and {refused} or refused end
    if registers then
      local cursor = rest[4] .. a[1]
      replace_cursors(rest[2], cursor, rest[11])
      return everything(a, rest, cursor)
    end
  end
  local server, from = replid(), string.sub(a[6], 17)
  local known = string.sub(a[6], 1, 16) == server
  if from == '' then from = '0' end
  if not known then from = digits(math.max(0, from - BACK_US)) end
  local moved = redis.call('ZRANGEBYSCORE', a[9], '(' .. from, '+inf', 'WITHSCORES', 'LIMIT', 0, a[7])
  if #moved == 0 then
    if known then return {'ok'} end
    return {'ok', server .. from, 0, 0, 0, {}, {}}
  end
  rest = rest or cmsgpack.unpack(a[10])
  local more = #moved == 2 * a[7] and 1 or 0
  return {'ok', server .. digits(moved[#moved]), more, 0, 0, put_rows({}, moved, rest[2], rest[4] .. a[1]), {}}
end

register('sync', sync, {'allow-oom'})

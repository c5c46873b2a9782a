-- Shared by the functions of the user slot. What lives here: the packed row of a conversation, the one way a row is
-- raised, the rate of what one user may do, and how rows are answered. What never does: who may be a session (sync.lua).
--
-- A device's row is min_started and seen (ms), then msgpack [session, gateway, instance, started], which a session
-- compares as it stands. The gateway is '' once the session has ended. The field `*` beside the devices is min_started of
-- every device that has no row.

local ROW = '>c1c1I8I8I8I8I8'      -- kind, mark, head, count, read, read count, seq of the last change; the title follows
local TITLE_AT = 43
local PRESENT, LEFT = ' ', '-'
local TIMES = '>I8I8'              -- of a device's row: min_started, seen
local WHO_AT = 17
local SESSION, GATEWAY, INSTANCE, STARTED = 1, 2, 3, 4

local function now_ms()
  return math.floor(now_us() / 1000)
end

local function digits(number)
  return string.format('%.0f', number)
end

-- A device's row: min_started, seen, and who: {session, gateway, instance, started}.
local function device_of(row)
  local least, seen = struct.unpack(TIMES, row)
  return least, seen, cmsgpack.unpack(string.sub(row, WHO_AT))
end

-- Whether a device's row is this session's.
local function is_session(row, session)
  return row and cmsgpack.unpack(string.sub(row, WHO_AT))[SESSION] == session
end

-- Whether a device's row says word for word what the session `who` that started then says, and no kick came since.
local function holds(row, who, started)
  return row and string.sub(row, WHO_AT) == who and struct.unpack('>I8', row) <= tonumber(started)
end

-- The user was made and is not deleted.
local function alive(user)
  return redis.call('HEXISTS', user, 'created') == 1
end

-- Put a conversation on top of `recent`, strictly above all others: a reader that has come up to any score has missed
-- nothing below it, whatever the clock does.
local function raise(recent, conv, us)
  local top, at = redis.call('ZRANGE', recent, -1, -1, 'WITHSCORES')[2], us or now_us()
  if top then at = math.max(at, tonumber(top) + 1) end
  redis.call('ZADD', recent, digits(at), conv)
end

-- Raise a direct conversation to an event in the rows of one of its two users, who talks to `other`, and publish it. Says 1
-- if it was published. What `deliver` does on its own, and `append` where one server has the slots of all.
local function bring(user, convs, recent, channel, other, conv, seq, count, event, author, us)
  local row = redis.call('HGET', convs, conv)
  local head, heads, read, read_count, _ = 0, 0, 0, 0, nil
  if row then _, _, head, heads, read, read_count = struct.unpack(ROW, row) end
  local raised, reads = seq > head, author and seq > read
  -- With a row there is nothing to ask: a deletion that has not taken it yet takes it later, whatever stands in it.
  if not (raised or reads) or not (row or alive(user)) then return 0 end
  if raised then head, heads = seq, count end
  if reads then read, read_count = seq, count end
  redis.call('HSET', convs, conv, struct.pack(ROW, 'd', PRESENT, head, heads, read, read_count, 0) .. other)
  raise(recent, conv, us)
  if not raised then return 0 end
  redis.call('SPUBLISH', channel, event)
  return 1
end

-- Take one from a rate (GCRA in a field of the user's hash); an error with the microseconds to wait if there is none.
-- A clock that was set back costs nobody more than the whole burst.
local function spend(user, field, cost, burst)
  local us = now_us()
  local spent = math.max(tonumber(redis.call('HGET', user, field) or 0), us)
  local tat = math.min(spent, us + burst) + cost
  if tat - us > burst then return fail('RATE', digits(tat - us - burst)) end
  redis.call('HSET', user, field, digits(tat))
end

-- Append conversation, row, score, cursor to `out` for each conversation and its score; `cursor` '': for no device. In
-- pieces, because a call's arguments stand on Lua's stack.
local function put_rows(out, scored, convs, cursor)
  for first = 1, #scored, 1000 do
    local names = {}
    for i = first, math.min(first + 999, #scored), 2 do names[#names + 1] = scored[i] end
    local rows = redis.call('HMGET', convs, unpack(names))
    local cursors = cursor ~= '' and redis.call('HMGET', cursor, unpack(names))
    for i, name in ipairs(names) do
      local n = #out
      out[n + 1], out[n + 2], out[n + 3], out[n + 4] = name, rows[i], scored[first + 2 * i - 1], cursors and cursors[i]
    end
  end
  return out
end

-- Shared by the functions of the user slot. What lives here: the packed row of a conversation, the one way a row is
-- raised, the rate of what one user may do, and how rows are answered. What never does: who may be a session (sync.lua).
--
-- A device's row is msgpack [session, gateway, instance, started, min_started, seen]; times in ms. The gateway is '' once
-- the session has ended. The field `*` beside the devices is min_started of every device that has no row.

local ROW = '>c1c1I8I8I8I8I8'      -- kind, mark, head, count, read, read count, seq of the last change; the title follows
local TITLE_AT = 43
local PRESENT, LEFT = ' ', '-'
local SESSION, GATEWAY, INSTANCE, STARTED, MIN_STARTED, SEEN = 1, 2, 3, 4, 5, 6

local function now_ms()
  return math.floor(now_us() / 1000)
end

local function digits(number)
  return string.format('%.0f', number)
end

-- The user was made and is not deleted.
local function alive(user)
  return redis.call('HEXISTS', user, 'created') == 1
end

-- Put a conversation on top of `recent`, strictly above all others: a reader that has come up to any score has missed
-- nothing below it, whatever the clock does.
local function raise(recent, conv)
  local top, at = redis.call('ZRANGE', recent, -1, -1, 'WITHSCORES')[2], now_us()
  if top then at = math.max(at, tonumber(top) + 1) end
  redis.call('ZADD', recent, digits(at), conv)
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

-- Append conversation, row, score, cursor to `out` for each pair of conversation and score; '' for no cursors.
local function put_rows(out, pairs_, convs, cursor)
  for i = 1, #pairs_, 2 do
    local conv, n = pairs_[i], #out
    out[n + 1], out[n + 2], out[n + 3] = conv, redis.call('HGET', convs, conv), pairs_[i + 1]
    out[n + 4] = cursor ~= '' and redis.call('HGET', cursor, conv)
  end
  return out
end

-- set_relation: copy what another user is to this one from their pair's record.
-- KEYS  user people ends copied
-- ARGV  other number kind blocks(0|1) hidden(0|1) at until message channel signal presence_channel touched mark checks(0|1)
--   kind: c contact, o outgoing, i incoming request, - nothing; hidden: one of the two blocks the other; until: of a
--   request; mark: of the pair in `copied`; checks: 1 if this call is the check for which the pair is marked
-- Returns 1 if it was copied or is here already; 'gone': there is no such user; 'full': no room for an incoming request;
--   'crowded': no room for another user's block; {number} of the row if it is of a later change
--
-- Keeps true: the record's later change wins, whatever the order in which changes arrive. So a row that says nothing any
-- more stays for an hour. `#<kind>` and `#b`, `#h` count the rows of a kind, blocks, and users who are hidden; `hides` in
-- the user's hash says that there are any. A request that is over is no row: every call removes some of them. A pair whose
-- row changes is marked in `copied`, so that a router compares it with the record once more: a failover of the record's
-- server may take the record back, and its mark with it. Rows that only others make (requests to the user, blocks of the
-- user) are refused beyond ROWS; of a block that is refused, the blocked user's presence is not hidden from the user who
-- blocks. The user's own contacts, requests and blocks have room always.

local ROW = '>I8c1BBI8I8'          -- number, kind, blocks, hidden, at, until; the message follows
local INCOMING = 500
local ROWS = 20000
local STAYS_MS = 3600000
local SWEEP = 100

local function count(people, row, by)
  local _, kind, blocks, hidden = struct.unpack(ROW, row)
  if kind ~= '-' then redis.call('HINCRBY', people, '#' .. kind, by) end
  if blocks == 1 then redis.call('HINCRBY', people, '#b', by) end
  if hidden == 1 then redis.call('HINCRBY', people, '#h', by) end
end

-- Remove rows whose time has come: requests that are over, and rows that say nothing any more.
local function sweep(people, ends, now)
  local over = redis.call('ZRANGEBYSCORE', ends, '-inf', now, 'LIMIT', 0, SWEEP)
  for _, other in ipairs(over) do
    local row = redis.call('HGET', people, other)
    if row then
      local number, kind, blocks, hidden, at = struct.unpack(ROW, row)
      count(people, row, -1)
      if blocks + hidden == 0 then
        redis.call('HDEL', people, other)
      else
        local left = struct.pack(ROW, number, kind == 'c' and 'c' or '-', blocks, hidden, at, 0)
        redis.call('HSET', people, other, left)
        count(people, left, 1)
      end
    end
    redis.call('ZREM', ends, other)
  end
end

local function set_relation(keys, a)
  local user, people, ends, copied = keys[1], keys[2], keys[3], keys[4]
  local other, number, kind, until_ms, now = a[1], tonumber(a[2]), a[3], tonumber(a[7]), now_ms()
  if a[14] == '1' then redis.call('ZREM', copied, a[13]) end
  if not alive(user) then return 'gone' end
  sweep(people, ends, now)
  local old = redis.call('HGET', people, other)
  local had, was, was_hidden, _ = 0, '-', 0, nil
  if old then had, was, _, was_hidden = struct.unpack(ROW, old) end
  if number == had then return 1 end
  if number < had then
    redis.call('ZADD', copied, now + RECHECK_MS, a[13])
    return {had}
  end
  local blank = kind == '-' and a[4] == '0' and a[5] == '0'
  if blank and not old then return 1 end
  if not old and a[4] == '0' and kind ~= 'c' and kind ~= 'o' and redis.call('HLEN', people) >= ROWS then
    return kind == 'i' and 'full' or 'crowded'
  end
  if kind == 'i' and was ~= 'i' and tonumber(redis.call('HGET', people, '#i') or 0) >= INCOMING then return 'full' end
  local row = struct.pack(ROW, number, kind, tonumber(a[4]), tonumber(a[5]), tonumber(a[6]), until_ms) .. a[8]
  if old then count(people, old, -1) end
  redis.call('HSET', people, other, row)
  count(people, row, 1)
  redis.call('ZADD', copied, now + RECHECK_MS, a[13])
  if blank then until_ms = now + STAYS_MS end
  if until_ms > 0 then redis.call('ZADD', ends, until_ms, other) else redis.call('ZREM', ends, other) end
  local hides = tonumber(redis.call('HGET', people, '#h') or 0) > 0
  if hides then redis.call('HSET', user, 'hides', 1) else redis.call('HDEL', user, 'hides') end
  if tonumber(a[5]) ~= was_hidden then redis.call('SPUBLISH', a[9], a[10]) end
  if tonumber(a[5]) ~= was_hidden or kind ~= was then redis.call('SPUBLISH', a[11], a[12]) end
  return 1
end

register('set_relation', set_relation)

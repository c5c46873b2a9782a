-- Shared by all functions of the library. What lives here: the clock, who this server is now, typed errors, and `write`,
-- the one way an event gets into a log. What never does: permissions, targets, rates; they are the functions' own.
--
-- While a library loads there is only `redis`: no `string`, `math`, `struct`, hence no aliases of them at the top. Ids are
-- printed with '%.0f' (tostring has 14 digits). `register` comes from library.py.

local E0 = 1750000000              -- seconds; what a seq that jumps counts its seconds from
local PER_SECOND = 1048576         -- seqs that a second of jump is worth: 2^53 is reached in 2297
local COALESCE_MS = 1500           -- how long a burst is left to its gateways before a router looks
local CAP_EVERY = 64               -- events between two looks at a log's length
local META = '>I8I8I4I4c16I8'      -- last seq, messages, cost and burst of the rate in µs, replication id, at of the last
local FRESH = '0000000000000000'   -- the replication id of no server: makes the first event jump

local rid, due = nil, 0            -- the replication id and until when it is taken for true

-- A typed error; the space is what makes the first word a code.
local function fail(code, detail)
  return redis.error_reply(code .. ' ' .. (detail or ''))
end

-- Microseconds since the epoch.
local function now_us()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

-- Who this server is: new at every promotion and every restart. Looked up every 20 ms.
local function replid(us)
  us = us or now_us()
  if us >= due or us < due - 20000 then
    rid = string.sub(string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)'), 1, 16)
    due = us + 20000
  end
  return rid
end

-- The slots of an event's bytes (contract/stamp.py).
local function seq_of(event) return (struct.unpack('>I8', event, 7)) end
local function prev_of(event) return (struct.unpack('>I8', event, 21)) end
local function count_of(event) return (struct.unpack('>I8', event, 36)) end
local function at_of(event) return (struct.unpack('>I8', event, 48)) end

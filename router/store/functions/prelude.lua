-- Shared by all functions of the library: the clock, the identity of this server, typed errors, and the only way to write
-- an event into a log (`append_event` and then `commit_event`). Permissions, targets and rates belong to the functions.
--
-- While a library loads, only `redis` exists: no `string`, `math`, `struct`, so there are no aliases of them at the top.
-- Commands take numbers as they are: Redis prints all digits. If Lua itself makes a string of a number, it uses '%.0f',
-- because tostring has 14 digits; '%.0f' costs as much as half a command. `register` comes from redis/functions.py.

local E0 = 1750000000              -- seconds; a seq that jumps counts its seconds from here
local PER_SECOND = 1048576         -- seqs that a second of jump is worth: 2^53 is reached in 2297
local AHEAD = 300 * PER_SECOND     -- by how much the clocks of two servers may differ, in seqs
local COALESCE_MS = 1500           -- how long gateways have a burst to themselves before a router claims it
local DELIVERED_MS = 4000          -- the same if `append` has delivered it: the rest (push, trimming) may wait
local CAP_EVERY = 64               -- events between two looks at a log's length
local META = '>I8I8I4I4c16I8'      -- last seq, messages, cost and burst of the rate in µs, replication id, at of the last
-- The opening of an event's bytes (contract/stamp.py): its slots between their names.
local SLOTS = '>c1c5I8c6I8c7I8c4I8'
local ANSWER = '>I8I8I8I8Bc16'     -- of a function that wrote: seq, prev, count, at, duplicate, replication id
local SKEW_MS = 10000              -- gateways follow Redis's clock within seconds: a later time is of another clock
local LOOK = 100                   -- entries of a due list that one claim looks at after the clock was put back
local FRESH = '0000000000000000'   -- the replication id of no server: makes the first event jump

local LOOKUP_US = 20000            -- for how long an answer about this server is used
local MARKS = 1000000000000000     -- in a dirty set: scores from here on are µs, of marks of servers; below are due times

local rid, due, since = nil, 0, 0  -- the replication id, until when it is used, and (µs) since when it is known
local tops, kept = {}, 0           -- see `score_above_all` (prelude_user.lua): `recent` -> its greatest score, number of these

-- A typed error; the space is what makes the first word a code.
local function fail(code, detail)
  return redis.error_reply(code .. ' ' .. (detail or ''))
end

-- Microseconds since the epoch.
local function now_us()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

-- The replication id of this server, which is new at every promotion and every restart. Read every 20 ms, or `now`.
local function replid(us, now)
  us = us or now_us()
  if now or us >= due or us < due - LOOKUP_US then
    local id = string.sub(string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)'), 1, 16)
    -- Between two looks that are not close together, the clock may have run ahead and been put back.
    if id ~= rid or us > due + LOOKUP_US or us < due - LOOKUP_US then tops, kept = {}, 0 end
    if id ~= rid then rid, since = id, us end
    due = us + LOOKUP_US
  end
  return rid
end

-- Whether this server is a node of a cluster, so that a partition can move away from it, and return.
local clustered
local function in_cluster()
  if clustered == nil then
    clustered = string.find(redis.call('INFO', 'cluster'), 'cluster_enabled:1', 1, true) ~= nil
  end
  return clustered
end

-- Since when (µs) this server, whose replication id is `id`, has had a partition without a break. On a cluster it is the
-- score of the mark `!<id>` in the partition's dirty set (of a partition of users, `push`), which moves with the
-- partition. The first write, or the first claim of a router, that finds no mark of this server sets one, and removes the
-- marks of all others. So if the partition
-- was elsewhere meanwhile, the mark is later than what this server wrote before. Elsewhere, a server has all partitions
-- for as long as it has its id.
local tenures = {}                 -- dirty set -> {id, since, until when that is used}

local function tenure(dirty, id, us)
  if not in_cluster() then return since end
  local known = tenures[dirty]
  if known and known.id == id and us < known.due and us >= known.due - LOOKUP_US then return known.since end
  local own = '!' .. id
  local at = tonumber(redis.call('ZSCORE', dirty, own) or nil)
  if not at then
    for _, other in ipairs(redis.call('ZRANGEBYSCORE', dirty, MARKS, '(+inf')) do
      if string.sub(other, 1, 1) == '!' then redis.call('ZREM', dirty, other) end
    end
    redis.call('ZADD', dirty, us, own)
    at = us
  end
  tenures[dirty] = {id = id, since = at, due = us + LOOKUP_US}
  return at
end

-- A server's tenure in a partition, as 16 bytes that no other tenure has. `list` is the sorted set that has the marks.
local function tenure_id(list, id, us)
  local from = tenure(list, id, us)
  return clustered and string.sub(id, 1, 8) .. struct.pack('>I8', from) or id
end

-- The seq that a jump to a time (µs) leads to.
local function jump_to(us)
  local seconds = math.floor(us / 1000000)
  return (seconds - E0) * PER_SECOND + math.floor((us - seconds * 1000000) * PER_SECOND / 1000000)
end

-- Whether a time (ms) that the system itself has stored is of another clock: the server's clock was put back since, or
-- another server has taken over whose clock is behind. Not for times that callers give, nor for series that only rise.
local function of_another_clock(at, now)
  return at > now + SKEW_MS
end

-- After the clock was put back, or another server has taken over, due times may be further ahead than any due time can be
-- (`most`, ms). The claims of a due list look at those, LOOK at a time, and set them to now. `~conv`, `=conv` and the
-- sentinel may be that far ahead.
local looks = {}                   -- due list -> the latest time of a claim, entries that this look has left alone

local function bring_dues_to_now(list, now, most)
  local look = looks[list]
  if not look or of_another_clock(look.at, now) then
    look = {at = now, left = 0}
    looks[list] = look
  end
  look.at = math.max(look.at, now)
  if not look.left then return end
  local beyond = '(' .. string.format('%.0f', now + most + SKEW_MS)
  local found = redis.call('ZRANGEBYSCORE', list, beyond, '+inf', 'LIMIT', look.left, LOOK)
  for _, name in ipairs(found) do
    if string.find(name, '^[~!=]') then look.left = look.left + 1 else redis.call('ZADD', list, now, name) end
  end
  if #found < LOOK then look.left = nil end
end

-- The slots of an event's bytes (contract/stamp.py).
local function seq_of(event) return (struct.unpack('>I8', event, 7)) end
local function prev_of(event) return (struct.unpack('>I8', event, 21)) end
local function count_of(event) return (struct.unpack('>I8', event, 36)) end
local function at_of(event) return (struct.unpack('>I8', event, 48)) end

-- The member row of a conversation: role, first and last seq the user sees (0: no end). Nil without a row.
local function membership(row)
  if not row then return nil end
  if row == 'm 0 0' then return 'm', 0, 0 end  -- both users of a direct one, a group's founders; the pattern costs more
  local role, joined, left = string.match(row, '^(%S) (%d+) (%d+)$')
  return role, tonumber(joined), tonumber(left)
end

local function present(row)
  return row and string.sub(row, 1, 1) ~= '-'
end

-- The earlier times of a user in a group, ascending, from `h:<user>`: pairs of first and last seq. A user that was added
-- again sees the events of earlier times, and not those in between.
local function earlier(packed)
  local times = {}
  for p = 1, #(packed or ''), 16 do
    local first, last = struct.unpack('>I8I8', packed, p)
    times[#times + 1] = {first, last}
  end
  return times
end

-- What a reader sees of a conversation: floor, first seq, last seq, the fields asked for (from the fifth on), and the
-- visible ranges {first, last}, ascending; nil if the user has no member row. User '' is the server and sees all.
local function view(key, user, ...)
  local h = redis.call('HMGET', key, 'm', 'floor', 'u:' .. user, 'h:' .. user, ...)
  if not h[1] then return nil end
  local last = struct.unpack('>I8', h[1])
  if user == '' then return tonumber(h[2] or 0), 0, last, h, {{0, last}} end
  local role, joined, left = membership(h[3])
  if not role then return nil end
  if left > 0 then last = left end
  local visible = earlier(h[4])
  visible[#visible + 1] = {joined, last}
  return tonumber(h[2] or 0), visible[1][1], last, h, visible
end

-- Look for an event in the log after `last` that is not counted: a call that died between log and counters has left it.
-- Returns last and count with it, and its bytes.
local function uncounted(log, last, count)
  local info, top, entry = redis.pcall('XINFO', 'STREAM', log), 0, nil
  if info.err then return last, count end  -- the log was lost
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then top = tonumber(string.match(info[i + 1], '^%d+')) end
    if info[i] == 'last-entry' then entry = info[i + 1] end
  end
  if top <= last then return last, count end
  local event = entry and entry[2][2]
  if event and seq_of(event) > last then return top, math.max(count, count_of(event)), event end
  return top, count
end

-- The seq up to which events were lost with the log: `head` if there is no log; if the log was created again since, the
-- `prev` of its first event. `first` is the first event that is there, `after` the seq that must be before it. Nil if no
-- event was lost: the log itself records which events were deleted.
local function lost_upto(log, first, after, head)
  local before = first and prev_of(first) or head
  if before <= after then return nil end
  local info = redis.pcall('XINFO', 'STREAM', log)
  if info.err then return head end
  for i = 1, #info, 2 do
    if info[i] == 'max-deleted-entry-id' then
      return tonumber(string.match(info[i + 1], '^%d+')) < before and before or nil
    end
  end
end

-- First half of a write: decide the event's seq, fill its slots, and add it to the log. `commit_event` is the second half.
-- `last`, `count`, `wrote` and `last_at` are of the conversation's meta. `author` is given only for messages, which are
-- counted. Returns a table, or nil and the error reply.
--
-- A seq is never used twice: on a server that did not write last here (a promotion, a restart, a move), or that had to
-- leave the partition to another server since its last write, it jumps over all seqs that were lost with the other server.
-- It jumps not to the time of this write but to the beginning of the server's tenure: an old primary goes on for a second
-- beside its successor, and readers of its events must be below the surviving log. `seen`, the highest seq that the
-- caller knows of, may come from a client. It is ignored if no server's clock allows it, because it would leave no seqs.
-- The first event of a direct conversation jumps to the time of this write: if its keys were lost while the server went
-- on (FLUSHALL, DEL, an eviction), seqs from the server's time onwards were used by this server itself.
--
-- XADD comes before the counters and under pcall: a call that died between the two must not block the conversation, and
-- its event must not be in the log twice if its sender sends it again.
local function append_event(log, dirty, last, count, wrote, last_at, us, seen, first, rest, author)
  local id, at, least, found = replid(us), math.floor(us / 1000), 0, nil
  local from = tenure(dirty, id, us)
  if wrote ~= id or clustered and from > last_at * 1000 + 999 and last < jump_to(from) then
    last, count = uncounted(log, last, count)
    local jump = jump_to(wrote == FRESH and math.max(us, from) or from)
    least = seen < jump + AHEAD and math.max(seen + 1, jump) or jump
  end
  for try = 1, 2 do
    local seq, total = math.max(last + 1, least), author and count + 1 or count
    local event = struct.pack(SLOTS, first, '\163seq\207', seq, '\164prev\207', last, '\165count\207', total,
      '\162at\207', at) .. rest
    local r
    if author then
      r = redis.pcall('XADD', log, seq, 'e', event, 'f', author)
    else
      r = redis.pcall('XADD', log, seq, 'e', event)
    end
    if type(r) == 'string' then
      return {seq = seq, prev = last, count = total, at = at, id = id, event = event}
    end
    if try == 2 or not string.find(r.err, 'equal or smaller', 1, true) then return nil, r end
    last, count, found = uncounted(log, last, count)
    if found and string.sub(found, 1, 1) == first and string.sub(found, 56) == rest then
      return {seq = last, prev = prev_of(found), count = count, at = at_of(found), id = id, event = found}
    end
  end
end

-- Files of messages. `f:<hash>` in a conversation's hash has the seqs of the messages there that have the file, 8 bytes
-- each, ascending; 0 is the avatar. A file whose last message has left the log is added to `freed`, until a router has
-- notified the file's own slot (jobs/finisher.py).
local HASH = 32
local FILES = '\165files'          -- the field's name in an event's bytes
local PINNED_S = 540               -- a pin lasts 600 s, and another server's clock may be a little ahead

local function has_files(event)
  return string.find(event, FILES, 57, true)
end

-- The hashes of an event's files and their posters, 32 bytes each.
local files_of
do  -- a library has at most 200 locals that are visible at once
  -- By the first byte of an object in msgpack: how many bytes follow it, or the format of its length; an extension has one
  -- byte more. cmsgpack knows no byte strings and extensions, which a body may have.
  local FIXED = {[0xca] = 4, [0xcb] = 8, [0xcc] = 1, [0xcd] = 2, [0xce] = 4, [0xcf] = 8, [0xd0] = 1, [0xd1] = 2, [0xd2] = 4,
    [0xd3] = 8, [0xd4] = 2, [0xd5] = 3, [0xd6] = 5, [0xd7] = 9, [0xd8] = 17}
  local SIZED = {[0xc4] = '>B', [0xc5] = '>I2', [0xc6] = '>I4', [0xc7] = '>B', [0xc8] = '>I2', [0xc9] = '>I4',
    [0xd9] = '>B', [0xda] = '>I2', [0xdb] = '>I4'}
  local MANY = {[0xdc] = '>I2', [0xdd] = '>I4', [0xde] = '>I2', [0xdf] = '>I4'}

  -- The place behind the object that begins there.
  local function behind(bytes, at)
    local left = 1
    while left > 0 do
      local first = string.byte(bytes, at)
      left, at = left - 1, at + 1
      if FIXED[first] then at = at + FIXED[first]
      elseif SIZED[first] then
        local size, from = struct.unpack(SIZED[first], bytes, at)
        at = from + size + (first >= 0xc7 and first <= 0xc9 and 1 or 0)
      elseif MANY[first] then
        local count, from = struct.unpack(MANY[first], bytes, at)
        left, at = left + count * (first >= 0xde and 2 or 1), from
      elseif first >= 0xa0 and first < 0xc0 then at = at + first - 0xa0
      elseif first >= 0x90 and first < 0xa0 then left = left + first - 0x90
      elseif first >= 0x80 and first < 0x90 then left = left + 2 * (first - 0x80) end
    end
    return at
  end

  -- The field of this name, in msgpack; nil if the event has none.
  local function field(event, name)
    local at = 2
    for _ = 1, string.byte(event) - 0x80 do
      local value = behind(event, at)
      local ends = behind(event, value)
      if string.sub(event, at, value - 1) == name then return string.sub(event, value, ends - 1) end
      at = ends
    end
  end

  function files_of(event)
    local packed, hashes = field(event, FILES), {}
    for _, file in ipairs(packed and cmsgpack.unpack(packed) or {}) do
      for _, one in ipairs({file, file.poster}) do
        hashes[#hashes + 1] = string.gsub(one.sha256, '%x%x', function(byte) return string.char(tonumber(byte, 16)) end)
      end
    end
    return hashes
  end
end

-- The seqs of a `f:` field without one of them.
local function without_seq(seqs, seq)
  local packed = struct.pack('>I8', seq)
  for p = 1, #seqs, 8 do
    if string.sub(seqs, p, p + 7) == packed then return string.sub(seqs, 1, p - 1) .. string.sub(seqs, p + 8) end
  end
  return seqs
end

local function free_files(key, hashes)
  if #hashes == 0 then return end
  redis.call('HSET', key, 'freed', (redis.call('HGET', key, 'freed') or '') .. table.concat(hashes))
end

-- Remove the references of messages that leave the log.
local function release_files(key, events)
  local freed = {}
  for _, event in ipairs(events) do
    for _, hash in ipairs(files_of(event)) do
      local field = 'f:' .. hash
      local seqs = redis.call('HGET', key, field)
      local left = seqs and without_seq(seqs, seq_of(event))
      if left == '' then
        redis.call('HDEL', key, field)
        freed[#freed + 1] = hash
      elseif left then
        redis.call('HSET', key, field, left)
      end
    end
  end
  free_files(key, freed)
end

-- Remove the first entries from a log, with the notes on their edits and reactions (append.lua) and the references of
-- their files.
local function trim_log(key, log, entries, count)
  if count == 0 then return end
  local notes, sent = {}, {}
  for i = 1, count do
    local event = entries[i][2][2]
    local seq = string.format('%.0f', seq_of(event))
    notes[2 * i - 1], notes[2 * i] = 'e:' .. seq, 'r:' .. seq
    if has_files(event) then sent[#sent + 1] = event end
  end
  redis.call('HDEL', key, unpack(notes))
  if #sent > 0 then release_files(key, sent) end
  redis.call('XTRIM', log, 'MINID', string.format('%.0f', seq_of(entries[count][2][2]) + 1))
end

-- Cut a log that no router trims, so that it does not grow for ever. `floor` announces the events that were cut.
local function cut_log(key, log, cap)
  local excess = math.min(redis.call('XLEN', log) - cap, 4 * CAP_EVERY)
  if excess <= 0 then return end
  local entries = redis.call('XRANGE', log, '-', '+', 'COUNT', excess)
  trim_log(key, log, entries, excess)
  redis.call('HSET', key, 'floor', string.format('%.0f', seq_of(entries[excess][2][2])))
end

-- Mark a conversation for routers. They claim it when `due` (ms) has come, and it stays marked until `routed` is its last
-- seq. So a conversation that is not finished is marked already, and a caller that has read a lower `routed` need not mark
-- it. The mark comes before the counters: a mark without an event does no harm.
local function mark_dirty(dirty, conv, due)
  redis.call('ZADD', dirty, 'NX', due, conv)
end

-- End a conversation whose meta is `m`; returns the seq of that change. Without `m` every function answers NOTFOUND, so no
-- event is written any more. `gone` and the member rows stay until a router has removed the conversation from all members
-- (`forget_conversation`); it is marked dirty for that, due now.
local function end_conversation(k, conv, m)
  local gone = struct.unpack('>I8', m) + 1
  redis.call('HSET', k[1], 'gone', string.format('%.0f', gone))
  redis.call('HDEL', k[1], 'm', 'lagging')
  redis.call('XTRIM', k[2], 'MAXLEN', 0)
  redis.call('ZADD', k[3], math.floor(now_us() / 1000), conv)
  redis.call('ZREM', k[3], '~' .. conv)
  return gone
end

-- Second half of a write: set the counters and the other fields of the conversation's hash that change (`...`: fields and
-- values), and publish the event (a direct conversation has no channel: `deliver` publishes its events).
local function commit_event(k, channel, cap, w, cost, burst, ...)
  redis.call('HSET', k[1], 'm', struct.pack(META, w.seq, w.count, cost, burst, w.id, w.at), ...)
  if w.seq % CAP_EVERY == 0 then cut_log(k[1], k[2], tonumber(cap)) end
  if channel ~= '' then redis.call('SPUBLISH', channel, w.event) end
  return struct.pack(ANSWER, w.seq, w.prev, w.count, w.at, 0, w.id)
end

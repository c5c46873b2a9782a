-- write_state: write one key of a user's state, or remove it.
-- KEYS  user state versions removed convs recent push
-- ARGV  key value channel signal expect change cost(µs) burst(µs)
--   `value`: msgpack, '' removes. `signal`: the beginning of the payload for the user's channel, up to the value.
--   `expect`: the version that the key must have, 0 for absent; '' for any. `change`: '' for a write of a client; for a
--   write of the server the number of the change that it copies.
-- Returns {version, the version before it, replication id}; nil if a later change of the server is stored already;
--   NOTFOUND | RATE | VERSION with the key's version | QUOTA
--
-- Keeps true: a version is never used twice, whichever server has given it. The row of the key, the index by version, the
-- user's version and its row in `recent` change together. Clients write at most KEYS_OF_CLIENTS keys and BYTES_OF_CLIENTS;
-- keys of the server do not count. Of the server's writes of a key, the one with the highest number stays.

local KEYS_OF_CLIENTS = 4096
local BYTES_OF_CLIENTS = 1048576   -- of keys and values together
local REMOVED = 1000               -- removed keys that are kept
local REMOVED_US = 2592000000000   -- for how long they are kept
local DROPPED = 16                 -- removed keys that one call drops at most
local AHEAD_US = 60000000          -- a server that takes over begins this far above the versions of a lost one
local RANGES = 8                   -- void ranges that are kept

-- The next version and the user's numbers. If another server wrote here last, or may have written since, its latest writes
-- may be lost: its versions came from its own clock, and it may have gone on for a moment beside this one. So this server
-- begins above them, and the range between is void: a device that has seen a version in it has data that is not stored.
-- `id` is of the server's tenure.
local function begin(packed, id, us)
  local last, floor, count, bytes, wrote, void = 0, 0, 0, 0, FRESH, ''
  if packed then
    last, floor, count, bytes, wrote = struct.unpack(STATE_META, packed)
    void = string.sub(packed, STATE_META_BYTES + 1)
  end
  if wrote == id then return math.max(us, last + 1), last, floor, count, bytes, void end
  local version = math.max(us + AHEAD_US, last + 1)
  void = void .. struct.pack('>I8I8', last, version)
  if #void > 16 * RANGES then
    local _, to = struct.unpack('>I8I8', void)
    floor = math.max(floor, to)
    void = string.sub(void, 17)
  end
  return version, last, floor, count, bytes, void
end

-- The removed keys that are not kept any longer, as key, version, …
local function outdated(removed, us)
  local oldest, doomed = redis.call('ZRANGE', removed, 0, DROPPED - 1, 'WITHSCORES'), {}
  if #oldest == 0 then return doomed end
  local excess = redis.call('ZCARD', removed) - REMOVED
  for i = 1, #oldest, 2 do
    if (i + 1) / 2 > excess and tonumber(oldest[i + 1]) > us - REMOVED_US then break end
    doomed[i], doomed[i + 1] = oldest[i], oldest[i + 1]
  end
  return doomed
end

local function write_state(keys, a)
  local user, state, versions, removed, convs, recent, push = unpack(keys)
  local key, value, channel, signal, expect, change = unpack(a)
  local us = now_us()
  local id, stored, of_server = replid(us), redis.call('HMGET', state, STATE_META_FIELD, key), change ~= ''
  if not alive(user) then return fail('NOTFOUND') end
  local meta, row = stored[1], stored[2]
  local was, changed = 0, 0
  if row then was, changed = struct.unpack(STATE_ROW, row) end
  local present = row and #row > STATE_ROW_BYTES
  local doomed, at = outdated(removed, us), score_above_all(recent, us)
  if of_server then
    if row and changed >= tonumber(change) then return nil end
    changed = tonumber(change)
    if row and string.sub(row, STATE_ROW_BYTES + 1) == value then
      redis.call('HSET', state, key, struct.pack(STATE_ROW, was, changed) .. value)
      local last = struct.unpack(STATE_META, meta)
      return {last, last, id}
    end
  else
    local refused = take_from_rate(user, 'states', tonumber(a[7]), tonumber(a[8]))
    if refused then return refused end
    local current = present and was or 0
    if expect ~= '' and tonumber(expect) ~= current then return fail('VERSION', digits(current)) end
  end
  local writer = tenure_id(push, id, us)
  local version, last, floor, count, bytes, void = begin(meta, writer, us)
  if not of_server then
    local more = (value ~= '' and 1 or 0) - (present and 1 or 0)
    local larger = (value ~= '' and #key + #value or 0) - (present and #key + #row - STATE_ROW_BYTES or 0)
    count, bytes = count + more, bytes + larger
    if more > 0 and count > KEYS_OF_CLIENTS or larger > 0 and bytes > BYTES_OF_CLIENTS then return fail('QUOTA') end
  end
  for i = 1, #doomed, 2 do
    floor = math.max(floor, tonumber(doomed[i + 1]))
    redis.call('HDEL', state, doomed[i])
    redis.call('ZREM', versions, doomed[i])
    redis.call('ZREM', removed, doomed[i])
  end
  redis.call('HSET', state, STATE_META_FIELD, struct.pack(STATE_META, version, floor, count, bytes, writer) .. void,
    key, struct.pack(STATE_ROW, version, changed) .. value)
  redis.call('ZADD', versions, version, key)
  if value == '' then              -- also if the key was absent: each answer has a version of its own
    redis.call('ZADD', removed, version, key)
  elseif row and not present then
    redis.call('ZREM', removed, key)
  end
  redis.call('HSET', convs, STATE, struct.pack('>I8', version))
  redis.call('ZADD', recent, at, STATE)
  redis.call('SPUBLISH', channel, signal .. (value == '' and '\192' or value) ..
    struct.pack('>c1I8c1I8', '\207', version, '\207', last))
  return {version, last, id}
end

register('write_state', write_state)

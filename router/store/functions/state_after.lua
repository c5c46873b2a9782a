-- state_after: read the keys of a user's state that changed after a version, in ascending order of versions.
-- KEYS  state versions
-- ARGV  known after prefix limit bytes
--   `known`: the version up to which the caller has applied all changes. `after`: where the page begins.
-- Returns {version of the user, reset(0|1), more(0|1), version up to which this page has looked, {key, version, value, …}}
--   (value '': the key was removed)
--
-- Keeps true: the page begins at 0, with `reset`, if the changes after `known` are not all known any more: `known` is above
-- the user's version or in a void range, so a failover has lost it, or it is older than the removed keys that are kept.

local STEP = 200                   -- entries of the index that are looked at together

local function lost(known, version, floor, void)
  if known > version or known < floor then return true end
  for p = 1, #void, 16 do
    local from, to = struct.unpack('>I8I8', void, p)
    if known > from and known < to then return true end
  end
  return false
end

local function state_after(keys, a)
  local state, versions, meta = keys[1], keys[2], redis.call('HGET', keys[1], STATE_META_FIELD)
  local known, after, prefix, limit, room = tonumber(a[1]), tonumber(a[2]), a[3], tonumber(a[4]), tonumber(a[5])
  local version, floor, void = 0, 0, ''
  if meta then
    version, floor = struct.unpack(STATE_META, meta)
    void = string.sub(meta, STATE_META_BYTES + 1)
  end
  local reset = lost(known, version, floor, void)
  if reset then after = 0 end
  local out, more = {}, 0
  local function take(key, row)
    local size = #key + #row - STATE_ROW_BYTES
    if #out > 0 and (#out == 3 * limit or size > room) then return false end
    room = room - size
    local n, written = #out, struct.unpack(STATE_ROW, row)
    out[n + 1], out[n + 2], out[n + 3] = key, written, string.sub(row, STATE_ROW_BYTES + 1)
    return true
  end
  local function look(found)         -- at a part of the index; false if the page is full
    local wanted = {}
    for i = 1, #found, 2 do
      if string.sub(found[i], 1, #prefix) == prefix then wanted[#wanted + 1] = found[i] end
    end
    local rows, n = #wanted > 0 and redis.call('HMGET', state, unpack(wanted)) or {}, 0
    for i = 1, #found, 2 do
      if found[i] == wanted[n + 1] then
        n = n + 1
        if rows[n] and not take(found[i], rows[n]) then return false end
      end
      after = tonumber(found[i + 1])
    end
    return true
  end
  repeat
    local found = redis.call('ZRANGEBYSCORE', versions, '(' .. digits(after), '+inf', 'WITHSCORES', 'LIMIT', 0, STEP)
    if not look(found) then
      more = 1
      break
    end
  until #found < 2 * STEP
  return {version, reset and 1 or 0, more, after, out}
end

register('state_after', state_after, {'no-writes'})

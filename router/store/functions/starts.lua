-- starts: read a user's role in many conversations, and the cursor at which a device that is new there begins.
-- KEYS  conv log, of each conversation where the cursor is asked; then conv, of each where only the role is asked
-- ARGV  user bytes read, the last of each conversation where the cursor is asked: the user's read mark
-- Returns {roles, start, …}: one character for each conversation, '-' where the user is no present member; and each
--   cursor, nil if the user does not see the conversation, '' if it was not looked at: ask again
--
-- Keeps true:
-- - The cursor is 100 events back, or at the read mark if that is further back, but 1000 events back at most. It is never
--   so far back that an event after it is trimmed or older than the membership. Only events that the user sees count.
-- - The cursor is always the `prev` of an event. Seqs jump, and a device with a cursor between two of them would believe
--   that the log was rolled back.
-- - If the events are large, the cursor is less far back, because a new device does not need megabytes of old events.
-- - One call reads a bounded part of all logs.

local NEAR, FAR, STEP = 100, 1000, 100
local MOST = 1000                  -- entries after which a call leaves the other conversations to the next call

-- The cursor in a conversation that the user sees, and how many entries and bytes were read for it.
local function start_in(log, floor, last, visible, read, bytes)
  local left, passed, cursor = bytes, 0, last
  for n = #visible, 1, -1 do
    local first_id, upto = string.format('%.0f', visible[n][1]), visible[n][2]
    while passed < FAR and (passed < NEAR or cursor > read) and left > 0 do
      local upto_id, want = string.format('%.0f', math.min(cursor, upto)), passed < NEAR and NEAR - passed or STEP
      local entries = redis.call('XREVRANGE', log, upto_id, first_id, 'COUNT', want)
      for i = 1, #entries do
        local event = entries[i][2][2]
        left = left - #event
        cursor = prev_of(event)
      end
      passed = passed + #entries
      if #entries < want then break end
    end
  end
  if passed > NEAR and cursor < read then cursor = read end
  return math.max(cursor, floor, 0), passed, bytes - left
end

local function starts(k, a)
  local user, bytes, asked, entries, size = a[1], tonumber(a[2]), #a - 2, 0, 0
  local roles, answer, us = {}, {}, now_us()
  local function note(i, key, row) roles[i] = row and unmuted(key, user, string.sub(row, 1, 1), us) or '-' end
  for i = 1, asked do
    local row, start = nil, ''
    if entries < MOST and size < bytes then
      local floor, _, last, h, visible = view(k[2 * i - 1], user)
      start = false
      if floor then
        local read, length
        start, read, length = start_in(k[2 * i], floor, last, visible, tonumber(a[i + 2]), bytes)
        row, entries, size = h[3], entries + read, size + length
      end
    end
    note(i, k[2 * i - 1], row)
    answer[i + 1] = start
  end
  for i = asked + 1, #k - asked do
    local key = k[asked + i]
    note(i, key, redis.call('HGET', key, 'u:' .. user))
  end
  answer[1] = table.concat(roles)
  return answer
end

register('starts', starts, {'no-writes'})

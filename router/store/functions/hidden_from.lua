-- hidden_from: find the viewers from which a user is hidden. A block of either of the two hides the user, and so does
-- the setting that only contacts see the user's presence.
-- KEYS  user people
-- ARGV  viewer …
-- Returns a string with one character for each viewer: 1 hidden, 0 not hidden; '' if the user is hidden from no user

local ROW = '>I8c1BB'              -- the beginning of a row of set_relation.lua
local FIELDS = 1000                -- a call's arguments stand on Lua's stack, and a popular user has many viewers

local function hidden_from(k, a)
  local hides, presence = unpack(redis.call('HMGET', k[1], 'hides', 'presence'))
  if not hides and not presence then return '' end
  local out = {}
  for first = 1, #a, FIELDS do
    local rows = redis.call('HMGET', k[2], unpack(a, first, math.min(first + FIELDS - 1, #a)))
    for i, row in ipairs(rows) do
      local hidden = presence and 1 or 0
      if row then
        local _, kind, _, blocked = struct.unpack(ROW, row)
        hidden = blocked == 1 and 1 or kind ~= 'c' and hidden or 0
      end
      out[first + i - 1] = hidden
    end
  end
  return table.concat(out)
end

register('hidden_from', hidden_from, {'no-writes'})

-- may_append: whether `append` would accept an event now. It has the arguments of append.lua, and reads only.
-- KEYS  conv log dirty
-- ARGV  as append.lua has them
-- Returns 1 if the event is new and would be written (or is a reaction that exists already), 0 if its n was accepted
--         before; the errors of append.lua
--
-- Keeps true: it decides by `check_append`, as append does, so the two never disagree about the same data.

local function may_append(k, a)
  local action, files, moderator, limited, _, n, answered, _, target, fingerprint, first = append_facts(a)
  local h, us = read_for_append(k, a), now_us()
  local refusal, known = check_append(k, a, h, us, action, files, moderator, limited, n, answered, target, fingerprint, first)
  return refusal or known and 0 or 1
end

register('may_append', may_append, {'no-writes'})

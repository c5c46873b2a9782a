-- may_open: whether a user may write the first message to another one, by the record of the pair (pair.lua).
-- KEYS  conv
-- ARGV  user other only(1: the other takes messages from contacts only; 0)
-- Returns 1; BLOCKED
--
-- Keeps true: the answer is that of `append` behind `create`, which put the setting into the record first.

local function may_open(k, a)
  local user, other = a[1], a[2]
  if user == other then return 1 end
  local record = pair_of(redis.call('HGET', k[1], 'pair')) or {of = {[user] = {}, [other] = {}}}
  record.of[other].only = a[3] == '1'
  return pair_role(record, user, other) == 'm' and 1 or fail('BLOCKED')
end

register('may_open', may_open, {'no-writes'})

-- move_acts: move the acts of a conversation to the audit of its partition.
-- KEYS  conv audit
-- ARGV  conv
-- Returns the number of acts that were moved
--
-- Keeps true: each act is in the audit once, because both keys change in one step. At most AUDIT_KEPT entries are kept.

local function move_acts(k, a)
  local acts, at, moved = redis.call('HGET', k[1], 'acts') or '', 1, 0
  while at < #acts do
    local size = struct.unpack('>I4', acts, at)
    local action, by, user, seq, when, reason = unpack(cmsgpack.unpack(string.sub(acts, at + 4, at + 3 + size)))
    local entry = {action = action, actor = by, user = user, conversation = a[1], seq = tonumber(seq), at = when,
      reason = reason}
    redis.call('XADD', k[2], 'MAXLEN', '~', AUDIT_KEPT, '*', 'e', cmsgpack.pack(entry))
    at, moved = at + 4 + size, moved + 1
  end
  if moved > 0 then redis.call('HDEL', k[1], 'acts') end
  return moved
end

register('move_acts', move_acts)

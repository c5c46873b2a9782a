-- decide_report: resolve, dismiss or reopen a report; the audit has each change of its state.
-- KEYS  report reports open resolved dismissed closed audit
-- ARGV  name made(µs) id state note by                           (state '' or note '-': leave it; a note begins with '+')
-- Returns the row; NOTFOUND
--
-- Keeps true: `closed` has when (ms) each report was closed whose copy of the message is still there (erase_reports.lua).

local function decide_report(k, a)
  local name, made, id, state, note, by, us = a[1], tonumber(a[2]), a[3], a[4], a[5], a[6], now_us()
  local packed = redis.call('HGET', k[1], name)
  if not packed then return fail('NOTFOUND', 'no such report') end
  local row, at = cmsgpack.unpack(packed), math.floor(us / 1000)
  if row.at ~= made then return fail('NOTFOUND', 'no such report') end
  if note ~= '-' then row.note = string.sub(note, 2) end
  if state ~= '' and state ~= row.state then
    row.state, row.closed = state, state == 'open' and 0 or at
    for i, of_state in ipairs({'open', 'resolved', 'dismissed'}) do
      if of_state == state then redis.call('ZADD', k[2 + i], row.at, name) else redis.call('ZREM', k[2 + i], name) end
    end
    if state == 'open' then redis.call('ZREM', k[6], name) else redis.call('ZADD', k[6], at, name) end
    redis.call('XADD', k[7], 'MAXLEN', '~', AUDIT_KEPT, '*', 'e', cmsgpack.pack({action = 'report_' .. state, actor = by,
      user = row.user, conversation = row.conversation, seq = row.seq, report = id, at = at, reason = row.note}))
  end
  packed = cmsgpack.pack(row)
  redis.call('HSET', k[1], name, packed)
  return packed
end

register('decide_report', decide_report)

-- note_reading: note in the audit that an admin who is no member reads a conversation's log.
-- KEYS  audit                                          (of the conversation's partition)
-- ARGV  conv actor reason                              (actor '': a server key)
-- Returns 1

local function note_reading(k, a)
  redis.call('XADD', k[1], 'MAXLEN', '~', AUDIT_KEPT, '*', 'e', cmsgpack.pack({
    action = 'conversation_read', actor = a[2], conversation = a[1], at = now_ms(), reason = a[3]}))
  return 1
end

register('note_reading', note_reading)

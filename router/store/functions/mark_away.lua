-- mark_away: record in a device's row that its session has ended.
-- KEYS  dev
-- ARGV  device session presence_channel touched
-- Returns 1, or 0 if the device has another session by now, or none
--
-- Keeps true: the row stays, because it contains the kick mark and the time at which the device was last seen. Only the
-- device's own session can end it.

local function mark_away(k, a)
  local dev, device, session, channel, touched = k[1], a[1], a[2], a[3], a[4]
  local row, now = redis.call('HGET', dev, device), now_ms()
  if not is_session(row, session) then return 0 end
  local least, seen, who = device_of(row)
  if who[GATEWAY] == '' then return 0 end
  who[GATEWAY] = ''
  if of_another_clock(seen, now) then seen = now else seen = math.max(seen, now) end
  redis.call('HSET', dev, device, struct.pack(TIMES, least, seen) .. cmsgpack.pack(who))
  redis.call('SPUBLISH', channel, touched)
  return 1
end

register('mark_away', mark_away, {'allow-oom'})

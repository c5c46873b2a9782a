-- A device has everything up to these seqs.
-- KEYS dev
-- ARGV device session cursor (conv seq)…
-- Returns 1, or 0 if the session is not the device's: a replaced one must not speak for its successor
-- Keeps true: cursors only go up.

local function ack(keys, a)
  if not is_session(redis.call('HGET', keys[1], a[1]), a[2]) then return 0 end
  for i = 4, #a, 2 do
    if tonumber(a[i + 1]) > tonumber(redis.call('HGET', a[3], a[i]) or -1) then
      redis.call('HSET', a[3], a[i], a[i + 1])
    end
  end
  return 1
end

register('ack', ack, {'allow-oom'})

-- Where a device begins in conversations that it has no cursor of.
-- KEYS dev
-- ARGV device session cursor known(0|1) (conv seq)…
-- Returns 1, or 0 if the session is not the device's
-- Keeps true: what stands, stands. The field `*` says that the device is known: until then each register calls it new.

local function set_starts(keys, a)
  local row = redis.call('HGET', keys[1], a[1])
  if not row or cmsgpack.unpack(row)[SESSION] ~= a[2] then return 0 end
  for i = 5, #a, 2 do redis.call('HSETNX', a[3], a[i], a[i + 1]) end
  if a[4] == '1' then redis.call('HSETNX', a[3], '*', '1') end
  return 1
end

register('set_starts', set_starts)

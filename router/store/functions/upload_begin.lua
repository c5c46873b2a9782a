-- upload_begin: decide whether a user may upload now, and count the upload.
-- KEYS  uploads uploading user unfinished
-- ARGV  id lease_ms at_once quota size cost(µs) burst(µs) resumable keep_ms most
--       size: the bytes to come, 0 if that is not known; cost 0: it was counted before
--       resumable: its name, '' for an upload in one request; most: how many of these a user may have
-- Returns 1; ATONCE FILEQUOTA RATE <µs> NOTFOUND
--
-- Keeps true:
-- - An upload that is refused does not count. An upload whose router died stops counting when its lease ends.
-- - The length of a resumable upload counts against the quota from its beginning until it is a file, or is removed. If
--   its router dies in between, it counts no more keep_ms after its last request.

local HELD = '>I8I8'               -- when it counts no more (ms), length

local function upload_begin(k, a)
  if not alive(k[3]) then return fail('NOTFOUND') end
  local now, cost, keep = now_ms(), tonumber(a[6]), tonumber(a[9])
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', k[2], '-inf', now)) do redis.call('ZREM', k[2], id) end
  if redis.call('ZCARD', k[2]) >= tonumber(a[3]) then return fail('ATONCE') end
  local bytes, count, over = tonumber(redis.call('HGET', k[1], 'bytes') or 0) + tonumber(a[5]), 0, {}
  if cost > 0 then
    local held = redis.call('HGETALL', k[4])
    for i = 1, #held, 2 do
      local ends, length = struct.unpack(HELD, held[i + 1])
      if ends > now and ends <= now + keep then
        bytes, count = bytes + length, count + 1
      else
        over[#over + 1] = held[i]
      end
    end
  end
  if bytes > tonumber(a[4]) or a[8] ~= '' and count >= tonumber(a[10]) then return fail('FILEQUOTA') end
  local refusal = take_from_rate(k[3], 'uploads', cost, tonumber(a[7]))
  if refusal then return refusal end
  for _, id in ipairs(over) do redis.call('HDEL', k[4], id) end
  if a[8] ~= '' then
    local held = redis.call('HGET', k[4], a[8])
    local _, length = struct.unpack(HELD, held or struct.pack(HELD, 0, tonumber(a[5])))
    if held or cost > 0 then redis.call('HSET', k[4], a[8], struct.pack(HELD, now + keep, length)) end
  end
  redis.call('ZADD', k[2], now + tonumber(a[2]), a[1])
  return 1
end

register('upload_begin', upload_begin)

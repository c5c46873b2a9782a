-- file_claim: claim the due items of some partitions of files until a lease ends.
-- KEYS  due held …                                     (two of each partition)
-- ARGV  limit (of each) lease_ms hold_s old_s keep_s
-- Returns {{item …} …}, one of each partition
--
-- Keeps true: on a server that is new to a partition (a restart, a failover, a restored backup) no item is claimed for
-- hold_s, or for keep_s if the server's data is older than old_s: messages may have referred to files since, on a server
-- that is lost. So a wrong or restored Redis deletes no file before an operator can notice.

local EVERY_S = 60                 -- how often the time of the last claim is written

local function claimed(due, held, a, now, id)
  if redis.call('EXISTS', due) == 0 then return {} end
  local h, seconds = redis.call('HMGET', held, 'id', 'at', 'ends'), math.floor(now / 1000)
  local at, ends = tonumber(h[2] or seconds), tonumber(h[3] or 0)
  if h[1] ~= id then
    if h[1] then ends = seconds + tonumber(seconds - at > tonumber(a[4]) and a[5] or a[3]) end
    redis.call('HSET', held, 'id', id, 'at', seconds, 'ends', ends)
  elseif seconds - at >= EVERY_S or at > seconds then
    redis.call('HSET', held, 'at', seconds)
  end
  if ends > seconds then return {} end
  bring_dues_to_now(due, now, MOST_DUE_MS)
  local found = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, a[1])
  for _, item in ipairs(found) do redis.call('ZADD', due, now + tonumber(a[2]), item) end
  return found
end

local function file_claim(k, a)
  local us, found = now_us(), {}
  local now, id = math.floor(us / 1000), replid(us)
  for i = 1, #k, 2 do found[#found + 1] = claimed(k[i], k[i + 1], a, now, id) end
  return found
end

register('file_claim', file_claim, {'allow-oom'})

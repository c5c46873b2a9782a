-- block: whether a party of a direct conversation may write to the other.
-- KEYS  conv
-- ARGV  user blocked 0|1
-- Returns 1 if that is new, else 0; NOTFOUND
--
-- Keeps true: blocking is the role `b`, so append learns of it with the member row it reads anyway.

local function block(k, a)
  local h = redis.call('HMGET', k[1], 'm', 'kind', 'u:' .. a[1])
  if not h[1] or h[2] ~= 'd' or not h[3] then return fail('NOTFOUND') end
  local row = (a[2] == '1' and 'b' or 'm') .. string.sub(h[3], 2)
  if row == h[3] then return 0 end
  redis.call('HSET', k[1], 'u:' .. a[1], row)
  return 1
end

register('block', block)

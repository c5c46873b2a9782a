-- end_tokens: log tokens of a user out, or set a new password, which ends tokens, too.
-- KEYS  user dev convs recent, then the cursor of each device that is forgotten
-- ARGV  channel kick presence_channel touched mode id expires(s) password expected, then the devices that are forgotten
--   `mode`: 'token' ends the token `id`; 'device' ends the token of the only device that is forgotten; 'all' ends every
--   token but `id` ('': none). `password`: the new one, '' none; then `expected` is the stored hash that was checked, or
--   'reset:' and the digest of a reset token.
-- Returns the replication id; NOTFOUND if there is no such user or device; CONFLICT if the password or the reset token is
--   not the expected one
--
-- Keeps true: a token that was ended is refused until it has expired. At most OUT tokens are noted; with one more, all
-- tokens of the user end. The sessions of the user check their tokens when they receive the signal, or when an audit
-- finds that TOKENS moved.

local OUT = 1000                   -- tokens that were logged out and have not expired
local FIRST_CURSOR, FIRST_DEVICE = 5, 10  -- in KEYS, in ARGV

-- The tokens that were logged out and have not expired, with another one; nil if there are too many.
local function noted(out, id, expires, now)
  local kept = {}
  for entry, at in string.gmatch(out or '', '( [^: ]+:(%d+))') do
    if tonumber(at) > now then kept[#kept + 1] = entry end
  end
  if #kept >= OUT then return nil end
  return table.concat(kept) .. ' ' .. id .. ':' .. digits(expires)
end

-- Whether the stored password, or the stored reset token ('<digest> <expiry>'), is the expected one.
local function as_expected(expected, stored, reset, now)
  local digest = string.match(expected, '^reset:(.+)$')
  if not digest then return stored == expected end
  local wanted, expires = string.match(reset or '', '^(%S+) (%d+)$')
  return wanted == digest and tonumber(expires) > now
end

local function end_tokens(k, a)
  local user, dev, convs, recent = k[1], k[2], k[3], k[4]
  local channel, kick, presence_channel, touched = a[1], a[2], a[3], a[4]
  local mode, id, expires, password, expected = a[5], a[6], tonumber(a[7]), a[8], a[9]
  local us = now_us()
  local now = math.floor(us / 1000000)
  local h = redis.call('HMGET', user, 'created', 'gen', 'out', 'pw', 'reset')
  if not h[1] then return fail('NOTFOUND') end
  if password ~= '' and not as_expected(expected, h[4], h[5], now) then return fail('CONFLICT') end
  if mode == 'device' then
    local row = redis.call('HGET', dev, a[FIRST_DEVICE])
    if not row then return fail('NOTFOUND') end
    local _, _, who = device_of(row)
    mode, id, expires = 'token', who[TOKEN] or '', who[EXPIRES] or 0
  end
  local at = score_above_all(recent, us)
  local out = mode == 'token' and noted(h[3], id, expires, now)
  if out then
    redis.call('HSET', user, 'out', out)
  else
    redis.call('HSET', user, 'gen', digits(tonumber(h[2] or 0) + 1), 'raised', digits(now), 'spared',
      mode == 'all' and id or '')
    redis.call('HDEL', user, 'out', 'reset')
  end
  if password ~= '' then redis.call('HSET', user, 'pw', password) end
  for i = FIRST_DEVICE, #a do redis.call('HDEL', dev, a[i]) end
  for i = FIRST_CURSOR, #k do redis.call('UNLINK', k[i]) end
  redis.call('HSET', convs, TOKENS, digits(us))
  redis.call('ZADD', recent, at, TOKENS)
  redis.call('SPUBLISH', channel, kick)
  redis.call('SPUBLISH', presence_channel, touched)
  return replid(us)
end

register('end_tokens', end_tokens, {'allow-oom'})

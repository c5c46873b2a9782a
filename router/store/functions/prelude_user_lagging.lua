-- Rows that lag. If one server has all slots and a direct conversation is active, its messages do not raise the rows of its
-- two users one by one, which would be half of the work of a message: the rows are raised when they are used.
--
-- `lagging` in a conversation's hash says that its rows lag: they are to be raised to the conversation's last seq. For that,
-- `o:<user>` has the seq and count of the user's last own message, up to which the user has read. A user's hash `lagging`
-- has conv -> msgpack {key of the conversation's hash, key of the user, name, other user}, and the conversation's field `rows`
-- is msgpack {{convs, recent, name} of each user}.
--
-- Keeps true:
-- - If a conversation has the field `lagging`, it is in the hash `lagging` of both users. `append` writes both in one step,
--   and `mark_routed` removes both in one step; so rows that a router has finished do not lag.
-- - Every function that reads or answers a row of a direct conversation, or writes it so that the old row matters, raises it
--   before (`catch_up_rows`, `catch_up_row`). So to all callers it is as if each message had raised it.
-- - Only plain messages of users are left to be raised: their events were published, and they change only head and read
--   mark. Every other event raises the rows at once.
-- - A user has at most LAGGING_MAX such conversations, because one call raises all of them.
-- - On a cluster no row lags. If a server with rows that lag becomes one, the routers deliver these events, which are all
--   above `routed`.
--
-- The key `lagging` is made from that of `convs`, and is not among KEYS, nor are the keys in its values: they are used on one
-- server only, where keys need not be declared. On a cluster, a declared key that does not exist would refuse the call while
-- its slot moves.

-- The key of a user's `lagging`, from that of `convs` or `recent`.
local function lagging_of(key)
  return (string.gsub(key, '}:%a+:', '}:lagging:', 1))
end

-- Whether the user of this `recent` may have rows that lag.
local function has_lagging_rows(recent)
  return not in_cluster() and redis.call('EXISTS', lagging_of(recent)) == 1
end

-- Raise one row to the seq and count of the conversation; `own`: the user's `o:` field, if there is one.
local function raise_lagging(user, convs, recent, other, conv, seq, count, own)
  local row = redis.call('HGET', convs, conv)
  if row and is_whole(row) and string.sub(row, mark_at(row), mark_at(row)) == LEFT then return end
  local own_seq, own_count = 0, 0
  if own then own_seq, own_count = struct.unpack('>I8I8', own) end
  raise_row(row, user, convs, recent, other, conv, seq, count, own_seq, own_count, 0, nil, 2)
end

-- Raise a user's row of one conversation if it lags.
local function catch_up_row(convs, recent, conv)
  local packed = not in_cluster() and redis.call('HGET', lagging_of(convs), conv)
  if not packed then return end
  local key, user, name, other = unpack(cmsgpack.unpack(packed))
  local h = redis.call('HMGET', key, 'm', 'lagging', 'o:' .. name)
  if not h[1] or not h[2] then return end
  local seq, count = struct.unpack('>I8I8', h[1])
  raise_lagging(user, convs, recent, other, conv, seq, count, h[3])
end

-- Raise all rows of a user that lag, in the order in which their conversations moved.
local function catch_up_rows(convs, recent)
  if in_cluster() then return end
  local lagging = lagging_of(convs)
  local found = redis.call('HGETALL', lagging)  -- nearly always empty
  if #found == 0 then return end
  local moved = {}
  for i = 1, #found, 2 do
    local key, user, name, other = unpack(cmsgpack.unpack(found[i + 1]))
    local h = redis.call('HMGET', key, 'm', 'lagging', 'o:' .. name)
    if not h[2] then
      redis.call('HDEL', lagging, found[i])
    elseif h[1] then
      local seq, count, _, _, _, at = struct.unpack(META, h[1])
      moved[#moved + 1] = {at = at, user = user, other = other, conv = found[i], seq = seq, count = count, own = h[3]}
    end
  end
  table.sort(moved, function(a, b) return a.at < b.at end)
  for _, m in ipairs(moved) do raise_lagging(m.user, convs, recent, m.other, m.conv, m.seq, m.count, m.own) end
end

-- count_relations: count the contacts, requests and blocks of a user.
-- KEYS  people ends
-- Returns {contacts, outgoing, incoming, blocks}

local function count_relations(keys)
  local now, counts = now_ms(), {}
  local h = redis.call('HMGET', keys[1], '#c', '#o', '#i', '#b')
  for i = 1, 4 do counts[i] = tonumber(h[i] or 0) end
  -- requests that are over and not swept yet
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', keys[2], '-inf', now)) do
    local row = redis.call('HGET', keys[1], other)
    local kind = row and string.sub(row, 9, 9)
    if kind == 'o' then counts[2] = counts[2] - 1 elseif kind == 'i' then counts[3] = counts[3] - 1 end
  end
  return counts
end

register('count_relations', count_relations, {'no-writes'})

-- renew_row: rewrite a row of format 1 in format 2. The rest of the row stays, so no session is notified and the
-- conversation is not raised.
-- KEYS  convs
-- ARGV  conv changed role      (`changed`: the change that the role is as of; '' for a direct one)
-- Returns 1, or 0 if the row has format 2, or another change, or is lost
--
-- Keeps true: a role that was read before a later change does not overwrite the later one.

local function renew_row(keys, a)
  local row = row_of(keys[1], a[1])
  if not row or role_in(row) then return 0 end
  local kind, mark, head, count, read, read_count, changed = unpack_row(row)
  if kind ~= 'd' and (mark ~= PRESENT or changed ~= tonumber(a[2])) then return 0 end
  redis.call('HSET', keys[1], a[1],
    pack_row(2, nil, kind, mark, a[3], head, count, read, read_count, changed, title_in(row)))
  return 1
end

register('renew_row', renew_row)

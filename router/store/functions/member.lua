-- member: put a user into a group or channel, give her another role, put her out; one `member` event for each change.
-- KEYS  conv log dirty
-- ARGV  conv channel cap actor user action role most first rest first_role rest_role
--       actor '' is the server, who may do anything; action put remove join; first/rest: the event, first_role/rest_role:
--       the event if `put` finds her present; most: members there may be
-- Returns {add|role|remove|none, role, seq, prev, count, at}; NOTFOUND READONLY_ CONFLICT
--
-- Keeps true:
-- - A conversation that has members has an owner, unless the server took it away.
-- - Admins manage members and readers; only owners touch admins and owners.
-- - The event's seq bounds what the user sees, and `ver` tells the gateways that somebody came or went.

local OWNERLESS = 'hand over ownership first'

local function high(role) return role == 'o' or role == 'a' end

-- Why `actor` (with role `by`) may not; nil if she may. `role`: what the user is now (nil: no member).
local function forbidden(a, kind, by, role, owners, size)
  local actor, user, action, wanted = a[4], a[5], a[6], a[7]
  if action == 'join' then return kind ~= 'c' and fail('NOTFOUND') or nil end
  if kind == 'd' then return fail('READONLY_', 'the members of a direct conversation never change') end
  if actor == '' then return nil end
  local leaves = action == 'remove' and actor == user
  local rises = action == 'put' and high(wanted)
  if not leaves and by ~= 'o' and by ~= 'a' then return fail('READONLY_', 'this takes the role owner or admin') end
  if not leaves and by == 'a' and (high(role) or rises) then
    return fail('READONLY_', 'this takes the role owner: it concerns an owner or admin')
  end
  if role == 'o' and owners <= 1 and (leaves and size > 1 or action == 'put' and wanted ~= 'o') then
    return fail('CONFLICT', OWNERLESS)
  end
end

local function member(k, a)
  local actor, user, action, wanted = a[4], a[5], a[6], a[7]
  local h = redis.call('HMGET', k[1], 'm', 'kind', 'size', 'owners', 'ver', 'u:' .. user, 'u:' .. actor)
  if not h[1] then return fail('NOTFOUND') end
  if actor ~= '' and action ~= 'join' and not present(h[7]) then return fail('NOTFOUND') end
  local kind, size, owners, row = h[2], tonumber(h[3]), tonumber(h[4]), 'u:' .. user
  local role, joined, left = membership(h[6])
  local was = present(h[6]) and role or nil
  local refusal = forbidden(a, kind, present(h[7]) and string.sub(h[7], 1, 1), was, owners, size)
  if refusal then return refusal end

  local change, first, rest = 'add', a[9], a[10]
  if action == 'remove' then change = was and 'remove' or 'none'
  elseif was and (action == 'join' or was == wanted) then change = 'none'
  elseif was then change, first, rest = 'role', a[11], a[12] end
  if change == 'none' then return {'none', was or '', left and left > 0 and left or joined or 0, 0, 0, 0} end
  if change == 'add' and size >= tonumber(a[8]) then return fail('CONFLICT', 'no room for more members') end

  local last, count, cost, burst, wrote = struct.unpack(META, h[1])
  local w, err = enter(k[2], last, count, wrote, now_us(), 0, first, rest, nil)
  if not w then return err end
  local now = change ~= 'remove' and wanted or '-'
  if change == 'add' then joined = kind == 'c' and 0 or w.seq end
  mark(k[3], a[1], w.at + COALESCE_MS)
  settle(k, a[2], a[3], w, cost, burst,
    row, string.format('%s %.0f %.0f', now, joined, change == 'remove' and w.seq or 0),
    'size', size + (change == 'add' and 1 or change == 'remove' and -1 or 0),
    'owners', owners + (now == 'o' and 1 or 0) - (was == 'o' and 1 or 0),
    'ver', tonumber(h[5]) + 1)
  return {change, change == 'remove' and was or wanted, w.seq, w.prev, w.count, w.at}
end

register('member', member)

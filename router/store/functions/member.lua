-- member: add a user to a group or channel, change the user's role, or remove the user; one `member` event per change.
-- KEYS  conv log dirty
-- ARGV  conv channel cap actor user action role most first rest first_role rest_role
--       actor '' is the server, which may do anything; action put remove join; role '' leaves a member's role; first/rest:
--       the event, first_role/rest_role: the event if `put` finds a present member; most: the limit of members
-- Returns {add|role|remove|none, role, seq, prev, count, at}; NOTFOUND READONLY_ CONFLICT
--
-- Keeps true:
-- - A conversation that has members has an owner, unless the server removed the owner.
-- - Admins manage members and readers; only owners may change admins and owners. Every member may take a lower role.
-- - A group ends when its last member leaves. There is no event then, because the log ends with the group.
-- - `a:<user>` has the seq at which a user was added to a channel by another user. `joined` does not say it, because
--   members see all events of a channel. Without `a:<user>`: a member since the beginning, or a reader.
-- - The event's seq bounds what the user sees, and `ver` notifies the gateways of the change.

local OWNERLESS = 'hand over ownership first'

local RANGES = 64                  -- earlier times of a user that are kept; if there are more, the first are forgotten
local RANK = {o = 4, a = 3, m = 2, r = 1}

local function high(role) return role == 'o' or role == 'a' end

-- The error if `actor`, whose role is `by`, may not do this; else nil. `role`: the user's role now (nil: no member).
local function forbidden(a, kind, by, role, wanted, owners, size)
  local actor, user, action = a[4], a[5], a[6]
  if action == 'join' then return kind ~= 'c' and fail('NOTFOUND') or nil end
  if kind == 'd' then return fail('READONLY_', 'the members of a direct conversation never change') end
  if actor == '' then return nil end
  local leaves = action == 'remove' and actor == user
  local own = leaves or action == 'put' and actor == user and RANK[wanted] < RANK[role]
  local rises = action == 'put' and high(wanted)
  if not own and by ~= 'o' and by ~= 'a' then return fail('READONLY_', 'this takes the role owner or admin') end
  if not own and by == 'a' and wanted ~= role and (high(role) or rises) then
    return fail('READONLY_', 'this takes the role owner: it concerns an owner or admin')
  end
  if role == 'o' and owners <= 1 and (leaves and size > 1 or action == 'put' and wanted ~= 'o') then
    return fail('CONFLICT', OWNERLESS)
  end
end

local function member(k, a)
  local actor, user, action = a[4], a[5], a[6]
  local h = redis.call('HMGET', k[1], 'm', 'kind', 'size', 'owners', 'ver', 'u:' .. user, 'u:' .. actor, 'h:' .. user)
  if not h[1] then return fail('NOTFOUND') end
  if actor ~= '' and action ~= 'join' and not present(h[7]) then return fail('NOTFOUND') end
  local kind, size, owners, row = h[2], tonumber(h[3]), tonumber(h[4]), 'u:' .. user
  local role, joined, left = membership(h[6])
  local was = present(h[6]) and role or nil
  local wanted = action == 'remove' and '-' or a[7] ~= '' and a[7] or was or 'm'
  local refusal = forbidden(a, kind, present(h[7]) and string.sub(h[7], 1, 1), was, wanted, owners, size)
  if refusal then return refusal end
  if kind == 'g' and action == 'remove' and was and actor == user and size == 1 then
    return {'remove', was, end_conversation(k, a[1], h[1]), 0, 0, 0}
  end

  local change, first, rest = 'add', a[9], a[10]
  if action == 'remove' then change = was and 'remove' or 'none'
  elseif was and (action == 'join' or was == wanted) then change = 'none'
  elseif was then change, first, rest = 'role', a[11], a[12] end
  if change == 'none' then return {'none', was or '', left and left > 0 and left or joined or 0, 0, 0, 0} end
  if change == 'add' and size >= tonumber(a[8]) then return fail('CONFLICT', 'no room for more members') end

  local last, count, cost, burst, wrote, last_at = struct.unpack(META, h[1])
  local w, err = append_event(k[2], k[3], last, count, wrote, last_at, now_us(), 0, first, rest, nil)
  if not w then return err end
  if change == 'add' and kind ~= 'c' and left and left > 0 then
    local times = (h[8] or '') .. struct.pack('>I8I8', joined, left)
    redis.call('HSET', k[1], 'h:' .. user, string.sub(times, -16 * RANGES))
  end
  if change == 'add' then joined = kind == 'c' and 0 or w.seq end
  mark_dirty(k[3], a[1], w.at + COALESCE_MS)
  if kind == 'c' and action == 'put' and (not was or was == 'r') then
    redis.call('HSET', k[1], 'a:' .. user, w.seq)
  elseif kind == 'c' and action == 'remove' then
    redis.call('HDEL', k[1], 'a:' .. user)
  end
  commit_event(k, a[2], a[3], w, cost, burst,
    row, string.format('%s %.0f %.0f', wanted, joined, change == 'remove' and w.seq or 0),
    'size', size + (change == 'add' and 1 or change == 'remove' and -1 or 0),
    'owners', owners + (wanted == 'o' and 1 or 0) - (was == 'o' and 1 or 0),
    'ver', tonumber(h[5]) + 1)
  return {change, change == 'remove' and was or wanted, w.seq, w.prev, w.count, w.at}
end

register('member', member)

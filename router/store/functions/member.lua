-- member: add a user to a group or channel, change the user's role, remove the user, or ban them; one `member` event per
-- change.
-- KEYS  conv log dirty
-- ARGV  conv channel cap actor user action role most first rest first_role rest_role until reason by
--       actor '' is the server, which may do anything; action put remove join ban; role '' leaves a member's role;
--       first/rest: the event, first_role/rest_role: the event if `put` finds a present member; most: the limit of
--       members; until (ms; 0: no end), reason, by ('': a server key): of a ban
-- Returns {add|role|remove|none, role, seq, prev, count, at}; NOTFOUND READONLY_ CONFLICT BANNED BADCOMMAND LATER
--
-- Keeps true:
-- - A conversation that has members has an owner, unless the server removed the owner.
-- - Admins manage members and readers; only owners may change admins and owners. Every member may take a lower role.
-- - A group ends when its last member leaves. There is no event then, because the log ends with the group.
-- - `a:<user>` has the seq at which a user was added to a channel by another user. `joined` does not say it, because
--   members see all events of a channel. Without `a:<user>`: a member since the beginning, or a reader.
-- - The event's seq bounds what the user sees, and `ver` notifies the gateways of the change.
-- - A mute stays: the row of a muted member has the role 'r', and the mute has the role that they are given.
-- - A user who is banned is not added, not even by the server.

local OWNERLESS = 'hand over ownership first'

local RANGES = 64                  -- earlier times of a user that are kept; if there are more, the first are forgotten

-- The error if `actor`, whose role is `by`, may not do this; else nil. `role`: the user's role now (nil: no member).
local function forbidden(a, kind, by, role, wanted, owners, size, adding)
  local actor, user, action = a[4], a[5], a[6]
  if action == 'join' then return kind ~= 'c' and fail('NOTFOUND') or nil end
  local refusal = may_not_manage(actor, user, action, kind, by, role, wanted, adding)
  if refusal or actor == '' then return refusal end
  local leaves = action == 'remove' and actor == user
  if role == 'o' and owners <= 1 and (leaves and size > 1 or action == 'put' and wanted ~= 'o') then
    return fail('CONFLICT', OWNERLESS)
  end
end

-- The role of a present member apart from a mute; nil if the row is of no present member.
local function role_of(key, user, row, us)
  return present(row) and unmuted(key, user, string.sub(row, 1, 1), us) or nil
end

local function member(k, a)
  local actor, user, action, us = a[4], a[5], a[6], now_us()
  local h = redis.call('HMGET', k[1], 'm', 'kind', 'size', 'owners', 'ver', 'u:' .. user, 'u:' .. actor, 'h:' .. user,
    'rules', 'x:' .. user, 'b:' .. user, 'acts')
  if not h[1] then return fail('NOTFOUND') end
  if actor ~= '' and action ~= 'join' and not present(h[7]) then return fail('NOTFOUND') end
  local kind, size, owners, row = h[2], tonumber(h[3]), tonumber(h[4]), 'u:' .. user
  local role, joined, left = membership(h[6])
  local was = role_of(k[1], user, h[6], us)
  local bans, until_ms = action == 'ban', tonumber(a[13])
  local wanted = (bans or action == 'remove') and '-' or a[7] ~= '' and a[7] or was or 'm'
  local _, _, adding = rules_of(h[9])
  local refusal = forbidden(a, kind, role_of(k[1], actor, h[7], us), was, wanted, owners, size, adding == ALL)
  if refusal then return refusal end
  if bans and until_ms > 0 and is_over(until_ms, us) then return fail('BADCOMMAND', PAST) end
  if kind == 'g' and action == 'remove' and was and actor == user and size == 1 then
    return {'remove', was, end_conversation(k, a[1], h[1]), 0, 0, 0}
  end

  local change, first, rest = 'add', a[9], a[10]
  if wanted == '-' then change = was and 'remove' or 'none'
  elseif was and (action == 'join' or was == wanted) then change = 'none'
  elseif was then change, first, rest = 'role', a[11], a[12] end
  if change == 'add' and h[11] and not is_over(ban_of(h[11])[1], us) then return fail('BANNED') end
  if change == 'add' and size >= tonumber(a[8]) then return fail('CONFLICT', 'no room for more members') end
  local at, acts = math.floor(us / 1000), nil
  if bans then
    acts, refusal = with_act(h[12], 'ban', a[15], user, 0, at, a[14])
    if refusal then return refusal end
  end
  local banned = bans and cmsgpack.pack({until_ms, at, actor == '' and a[15] ~= '' and AS_SERVER .. a[15] or a[15], a[14]})
  if change == 'none' then
    if bans then
      mark_dirty(k[3], a[1], at + COALESCE_MS)
      redis.call('HSET', k[1], 'b:' .. user, banned, 'acts', acts)
    end
    return {'none', was or '', left and left > 0 and left or joined or 0, 0, 0, 0}
  end

  local last, count, cost, burst, wrote, last_at = struct.unpack(META, h[1])
  local w, err = append_event(k[2], k[3], last, count, wrote, last_at, us, 0, first, rest, nil)
  if not w then return err end
  if change == 'add' and kind ~= 'c' and left and left > 0 then
    local times = (h[8] or '') .. struct.pack('>I8I8', joined, left)
    redis.call('HSET', k[1], 'h:' .. user, string.sub(times, -16 * RANGES))
  end
  if change == 'add' then joined = kind == 'c' and 0 or w.seq end
  mark_dirty(k[3], a[1], w.at + COALESCE_MS)
  if kind == 'c' and action == 'put' and (not was or was == 'r') then
    redis.call('HSET', k[1], 'a:' .. user, w.seq)
  elseif kind == 'c' and wanted == '-' then
    redis.call('HDEL', k[1], 'a:' .. user)
  end
  local stored = wanted
  if h[10] then
    local _, ends = mute_of(h[10])
    if is_over(ends, us) then
      redis.call('HDEL', k[1], 'x:' .. user)
    else
      redis.call('HSET', k[1], 'x:' .. user, mute(wanted, ends))
      if wanted ~= '-' then stored = 'r' end
    end
  end
  if bans then redis.call('HSET', k[1], 'b:' .. user, banned, 'acts', acts) end
  if change == 'add' and h[11] then redis.call('HDEL', k[1], 'b:' .. user) end  -- it is over
  commit_event(k, a[2], a[3], w, cost, burst,
    row, string.format('%s %.0f %.0f', stored, joined, change == 'remove' and w.seq or 0),
    'size', size + (change == 'add' and 1 or change == 'remove' and -1 or 0),
    'owners', owners + (wanted == 'o' and 1 or 0) - (was == 'o' and 1 or 0),
    'ver', tonumber(h[5]) + 1)
  return {change, change == 'remove' and was or wanted, w.seq, w.prev, w.count, w.at}
end

register('member', member)

-- moderate: mute or unmute a user of a group or channel, member or not, or end the user's ban.
-- KEYS  conv log dirty
-- ARGV  conv channel cap actor user action until reason by first rest
--       actor '' is the server; action mute unmute unban; until (ms; 0: no end), reason; by: the user who acts, '' a server
--       key; first/rest: the `member` event of `mute` and `unmute`
-- Returns 1, or 0 if the user was not muted or banned; NOTFOUND READONLY_ BADCOMMAND LATER
--
-- Keeps true:
-- - Who may remove a member may do this to them; no user may do it to themselves. A ban itself is in member.lua.
-- - The member row of a muted user has the role 'r', and the mute has the user's own role. Both change in one step.
-- - An act is noted for the audit in the step in which it is done.

local function moderate(k, a)
  local actor, user, action, until_ms, us = a[4], a[5], a[6], tonumber(a[7]), now_us()
  local h = redis.call('HMGET', k[1], 'm', 'kind', 'ver', 'u:' .. user, 'u:' .. actor, 'x:' .. user, 'b:' .. user, 'acts',
    'mutes')
  if not h[1] or actor ~= '' and not present(h[5]) then return fail('NOTFOUND') end
  local by = present(h[5]) and unmuted(k[1], actor, string.sub(h[5], 1, 1), us) or nil
  local role, joined, left = membership(h[4])
  local own = present(h[4]) and unmuted(k[1], user, role, us) or nil
  local refusal = may_not_manage(actor, user, action, h[2], by, own, nil, false)
  if refusal then return refusal end
  if action == 'mute' and until_ms > 0 and is_over(until_ms, us) then return fail('BADCOMMAND', PAST) end
  local muted = h[6] and select(2, mute_of(h[6]))
  if action == 'unmute' and not muted or action == 'unban' and not h[7] then return 0 end
  local at = math.floor(us / 1000)
  local acts, full = with_act(h[8], action, a[9], user, 0, at, a[8])
  if full then return full end
  if action == 'unban' then
    mark_dirty(k[3], a[1], at + COALESCE_MS)
    redis.call('HSET', k[1], 'acts', acts)
    redis.call('HDEL', k[1], 'b:' .. user)
    return 1
  end

  local last, count, cost, burst, wrote, last_at = struct.unpack(META, h[1])
  local w, err = append_event(k[2], k[3], last, count, wrote, last_at, us, 0, a[10], a[11], nil)
  if not w then return err end
  mark_dirty(k[3], a[1], w.at + COALESCE_MS)
  if action == 'mute' then
    redis.call('HSET', k[1], 'x:' .. user, mute(own or '-', until_ms))
  else
    redis.call('HDEL', k[1], 'x:' .. user)
  end
  if own then
    redis.call('HSET', k[1], 'u:' .. user, string.format('%s %.0f %.0f', action == 'mute' and 'r' or own, joined, left))
  end
  local mutes = tonumber(h[9] or 0)
  if action == 'mute' then mutes = math.max(mutes, until_ms > 0 and until_ms or FOR_EVER) end
  commit_event(k, a[2], a[3], w, cost, burst, 'ver', tonumber(h[3]) + 1, 'acts', acts, 'mutes', string.format('%.0f', mutes))
  return 1
end

register('moderate', moderate)

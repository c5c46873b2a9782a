-- title: change a group's or channel's title, its avatar, its rules, or which members may react there; one `title` event.
-- KEYS  conv log dirty
-- ARGV  conv channel cap actor change title first rest reacting avatar posting adding slow_s
--       actor '' is the server
--       change: whether the title changes (0|1); first/rest: the event without the title at its end
--       reacting: all members, '' to leave it; avatar: '' to leave it, '-' to remove it, or the time (s) of its pin and
--       its hash; posting, adding: all admins, slow_s: seconds; '' to leave it (prelude_rules.lua)
-- Returns as append; NOTFOUND READONLY_ LATER
--
-- Keeps true: only owners, admins and the server may do that; a direct conversation has no title. An avatar is a reference
-- to its file (`f:<hash>`, prelude.lua), as the message 0.

-- Remove the old avatar's reference; returns the fields of the new one.
local function replace_avatar(key, was, new, held)
  if was and was ~= new then
    local left = without_seq(redis.call('HGET', key, 'f:' .. was) or '', 0)
    if left == '' then
      redis.call('HDEL', key, 'f:' .. was)
      free_files(key, {was})
    else
      redis.call('HSET', key, 'f:' .. was, left)
    end
  end
  if new then return 'avatar', new, 'f:' .. new, struct.pack('>I8', 0) .. without_seq(held or '', 0) end
  redis.call('HDEL', key, 'avatar')
end

local function change_rules(key, packed, posting, adding, slow_s)
  if posting == '' and adding == '' and slow_s == '' then return end
  local slow_was, posting_was, adding_was = rules_of(packed)
  local slow = slow_s ~= '' and tonumber(slow_s) or slow_was
  posting = posting == '' and posting_was or posting == 'admins' and ADMINS or ALL
  adding = adding == '' and adding_was or adding == 'admins' and ADMINS or ALL
  if slow == 0 and posting == ALL and adding == ADMINS then
    redis.call('HDEL', key, 'rules')
  else
    redis.call('HSET', key, 'rules', struct.pack(RULES, slow, posting, adding))
  end
end

local function title(k, a)
  local h = redis.call('HMGET', k[1], 'm', 'kind', 'u:' .. a[4], 'title', 'reacting', 'avatar', 'rules')
  if not h[1] or a[4] ~= '' and not present(h[3]) then return fail('NOTFOUND') end
  local us = now_us()
  local role = h[3] and unmuted(k[1], a[4], string.sub(h[3], 1, 1), us)
  if h[2] == 'd' then return fail('READONLY_', 'a direct conversation has no title') end
  if a[4] ~= '' and role ~= 'o' and role ~= 'a' then
    return fail('READONLY_', 'this takes the role owner or admin')
  end
  local called, reacting = a[5] == '1' and a[6] or h[4], a[9] ~= '' and a[9] or h[5] or 'all'
  local avatar, new, held = a[10], nil, nil
  if #avatar > 1 then
    if us / 1000000 - struct.unpack('>I4', avatar) > PINNED_S then return fail('LATER', 'the pin is too old') end
    new = string.sub(avatar, 5)
    held = redis.call('HGET', k[1], 'f:' .. new)
  end
  local last, count, cost, burst, wrote, last_at = struct.unpack(META, h[1])
  local rest = a[8] .. cmsgpack.pack(called)
  local w, err = append_event(k[2], k[3], last, count, wrote, last_at, us, 0, a[7], rest, nil)
  if not w then return err end
  mark_dirty(k[3], a[1], w.at + COALESCE_MS)
  change_rules(k[1], h[7], a[11], a[12], a[13])
  if avatar == '' then return commit_event(k, a[2], a[3], w, cost, burst, 'title', called, 'reacting', reacting) end
  return commit_event(k, a[2], a[3], w, cost, burst, 'title', called, 'reacting', reacting,
    replace_avatar(k[1], h[6] or nil, new, held))
end

register('title', title)

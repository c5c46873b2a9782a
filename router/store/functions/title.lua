-- title: change a group's or channel's title, its avatar, or which members may react there; one `title` event.
-- KEYS  conv log dirty
-- ARGV  conv channel cap actor change title first rest reacting avatar   (actor '' is the server)
--       change: whether the title changes (0|1); first/rest: the event without the title at its end
--       reacting: all members, '' to leave it; avatar: '' to leave it, '-' to remove it, or the time (s) of its pin and
--       its hash
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

local function title(k, a)
  local h = redis.call('HMGET', k[1], 'm', 'kind', 'u:' .. a[4], 'title', 'reacting', 'avatar')
  if not h[1] or a[4] ~= '' and not present(h[3]) then return fail('NOTFOUND') end
  local role = h[3] and string.sub(h[3], 1, 1)
  if h[2] == 'd' then return fail('READONLY_', 'a direct conversation has no title') end
  if a[4] ~= '' and role ~= 'o' and role ~= 'a' then
    return fail('READONLY_', 'this takes the role owner or admin')
  end
  local called, reacting = a[5] == '1' and a[6] or h[4], a[9] ~= '' and a[9] or h[5] or 'all'
  local avatar, new, held = a[10], nil, nil
  if #avatar > 1 then
    if now_us() / 1000000 - struct.unpack('>I4', avatar) > PINNED_S then return fail('LATER', 'the pin is too old') end
    new = string.sub(avatar, 5)
    held = redis.call('HGET', k[1], 'f:' .. new)
  end
  local last, count, cost, burst, wrote, last_at = struct.unpack(META, h[1])
  local rest = a[8] .. cmsgpack.pack(called)
  local w, err = append_event(k[2], k[3], last, count, wrote, last_at, now_us(), 0, a[7], rest, nil)
  if not w then return err end
  mark_dirty(k[3], a[1], w.at + COALESCE_MS)
  if avatar == '' then return commit_event(k, a[2], a[3], w, cost, burst, 'title', called, 'reacting', reacting) end
  return commit_event(k, a[2], a[3], w, cost, burst, 'title', called, 'reacting', reacting,
    replace_avatar(k[1], h[6] or nil, new, held))
end

register('title', title)

-- title: change a group's or channel's title, or who may react there; one `title` event.
-- KEYS  conv log dirty
-- ARGV  conv channel cap actor change title first rest reacting     (actor '' is the server)
--       change: whether the title changes (0|1); the event lacks the title at its end; reacting: all members, '' to leave it
-- Returns as append; NOTFOUND READONLY_
--
-- Keeps true: only owners and admins do; a direct conversation has none.

local function title(k, a)
  local h = redis.call('HMGET', k[1], 'm', 'kind', 'u:' .. a[4], 'title', 'reacting')
  if not h[1] or a[4] ~= '' and not present(h[3]) then return fail('NOTFOUND') end
  local role = h[3] and string.sub(h[3], 1, 1)
  if h[2] == 'd' then return fail('READONLY_', 'a direct conversation has no title') end
  if a[4] ~= '' and role ~= 'o' and role ~= 'a' then
    return fail('READONLY_', 'this takes the role owner or admin')
  end
  local called, reacting = a[5] == '1' and a[6] or h[4], a[9] ~= '' and a[9] or h[5] or 'all'
  local last, count, cost, burst, wrote, last_at = struct.unpack(META, h[1])
  local rest = a[8] .. cmsgpack.pack(called)
  local w, err = enter(k[2], k[3], last, count, wrote, last_at, now_us(), 0, a[7], rest, nil)
  if not w then return err end
  mark(k[3], a[1], w.at + COALESCE_MS)
  return settle(k, a[2], a[3], w, cost, burst, 'title', called, 'reacting', reacting)
end

register('title', title)
